"""``tuili plan``: where a GPU's memory would go."""

from __future__ import annotations

import sys

import msgspec
import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from app.checkpoints.header import WeightError
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.models.config import ConfigError
from app.runner.errors import RunnerError
from app.runner.formats import choose_formats
from app.runner.loading import read_model_config
from app.runner.memory import DRIVER_BYTES, MARGIN_BYTES, Budget, MemoryPlan, gib
from app.runner.start import plan_for_gpu
from app.serve.engine import engine_config
from app.settings import Settings
from app.store import Store, StoreError, locate_config


class PlanError(Exception):
    """There is no such plan; one line that says why, and what to change."""


def plan(settings: Settings, gpu_memory: str | None, *, json_only: bool) -> None:
    """Prints the plan: a table for people on stderr, and one line of JSON on stdout.

    Args:
        gpu_memory: all of a GPU's, as text with a unit; None asks the GPU that is here.

    Raises:
        PlanError: the model is not here, or does not fit.
    """
    if settings.device == "cpu":
        raise PlanError("device = 'cpu': plans are for GPUs; on a CPU kv_cache_memory is what it says")
    memory = _memory(gpu_memory)
    try:
        name, directory = locate_config(settings.model, Store(settings.home))
        model = read_model_config(directory, sorted(directory.glob("*.safetensors")))
        dispatch.configure(dispatch.Mode(settings.kernels), threads=1)
        config, placement = choose_formats(engine_config(settings, directory), choose_backend(torch.device("cuda")))
        made = plan_for_gpu(model, config, placement, Budget(memory=memory, reserve=DRIVER_BYTES + MARGIN_BYTES))
    except (StoreError, ConfigError, WeightError, RunnerError) as error:
        raise PlanError(str(error)) from None
    formats = {"dtype": config.dtype, "quantization": config.quantization, "kv_cache_dtype": config.kv_cache_dtype}
    if not json_only:
        console = Console(stderr=True)
        console.print(f"{name}: {', '.join(f'{key} {value}' for key, value in formats.items())}", highlight=False)
        console.print(_table(made))
        console.print(
            f"The KV cache holds {made.kv.num_tokens:,} tokens, {made.kv.num_sequences} sequences of "
            f"{made.kv.max_model_len:,}.",
            highlight=False,
        )
    row = {
        "model": name,
        **formats,
        "memory": made.memory,
        **{what.lower().replace(" ", "_"): nbytes for what, nbytes in made.rows()},
        "kv_cache_tokens": made.kv.num_tokens,
        "max_model_len": made.kv.max_model_len,
    }
    sys.stdout.write(msgspec.json.encode(row).decode() + "\n")


def _memory(text: str | None) -> int:
    if text is None:
        if not torch.cuda.is_available():
            raise PlanError("there is no GPU here: say how much memory it would have, e.g. --gpu-memory 80GiB")
        return torch.cuda.mem_get_info()[1]
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise PlanError(f"--gpu-memory {text!r} is no size; write it as 80GiB") from None


def _table(made: MemoryPlan) -> Table:
    table = Table()
    table.add_column("for")
    table.add_column("memory", justify="right")
    table.add_column("share", justify="right")
    for what, nbytes in made.rows():
        table.add_row(what, gib(nbytes), f"{nbytes / made.memory:.1%}")
    table.add_row("in all", gib(made.memory), "", end_section=True)
    return table
