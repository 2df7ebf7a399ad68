"""``tuili plan``: where a GPU's memory would go."""

from __future__ import annotations

import sys

import msgspec
import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from app.checkpoints.header import WeightError
from app.contract.info import KVCacheSpec
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.models.config import ConfigError
from app.runner.errors import RunnerError
from app.runner.foreign import plan as foreign
from app.runner.foreign.library import read_config as read_foreign_config
from app.runner.foreign.runner import settle
from app.runner.formats import choose_formats
from app.runner.loading import read_model_config
from app.runner.memory import DRIVER_BYTES, MARGIN_BYTES, Budget, gib
from app.runner.start import plan_for_gpu
from app.serve.engine import engine_config
from app.settings import Settings
from app.store import Store, StoreError, at_revision, locate_config


class PlanError(Exception):
    """There is no such plan; one line that says why, and what to change."""


def plan(settings: Settings, gpu_memory: str | None, *, json_only: bool) -> None:
    """Prints the plan: a table for people on stderr, and one line of JSON on stdout.

    Args:
        gpu_memory: size of a GPU's memory, as text with a unit; None asks the GPU that is here.

    Raises:
        PlanError: the model is not here, or does not fit.
    """
    if settings.device == "cpu":
        raise PlanError("device = 'cpu': plans are for GPUs; on a CPU kv_cache_memory is what it says")
    memory = _memory(gpu_memory)
    if settings.via is not None:
        _plan_foreign(settings, memory, json_only=json_only)
        return
    try:
        name, directory = locate_config(at_revision(settings.model, settings.revision), Store(settings.home))
        model = read_model_config(directory, sorted(directory.glob("*.safetensors")))
        dispatch.configure(dispatch.Mode(settings.kernels), threads=1)
        config, placement = choose_formats(engine_config(settings, directory), choose_backend(torch.device("cuda")))
        made = plan_for_gpu(model, config, placement, Budget(memory=memory, reserve=DRIVER_BYTES + MARGIN_BYTES))
    except (StoreError, ConfigError, WeightError, RunnerError) as error:
        raise PlanError(str(error)) from None
    tier = config.prefix_cache_ram or 0
    tier_tokens = _tokens_in(tier, made.kv.spec)
    formats = {"dtype": config.dtype, "quantization": config.quantization, "kv_cache_dtype": config.kv_cache_dtype}
    if not json_only:
        _tell(
            f"{name}: {', '.join(f'{key} {value}' for key, value in formats.items())}",
            _table(made.rows(), made.memory),
            f"The KV cache holds {made.kv.num_tokens:,} tokens, {made.kv.num_sequences} sequences of "
            f"{made.kv.max_model_len:,}."
            + (f" Its tier takes up to {gib(tier)} of the host's memory, for {tier_tokens:,} tokens." if tier else ""),
        )
    _write(
        {
            "model": name,
            **formats,
            "memory": made.memory,
            **{what.lower().replace(" ", "_"): nbytes for what, nbytes in made.rows()},
            "kv_cache_tokens": made.kv.num_tokens,
            "max_model_len": made.kv.max_model_len,
            "prefix_cache_ram": tier,
            "prefix_cache_ram_tokens": tier_tokens,
        }
    )


def _tokens_in(nbytes: int, spec: KVCacheSpec) -> int:
    """Tokens whose keys and values, of the layers that keep all of them, take so many bytes."""
    block_bytes = sum(group.bytes_per_block for group in spec.groups if group.kind == "full")
    return nbytes // block_bytes * spec.block_size if block_bytes else 0


def _plan_foreign(settings: Settings, memory: int, *, json_only: bool) -> None:
    """:func:`plan` of a model that another library computes; what that takes of a step's memory is not known."""
    try:
        name, directory = locate_config(
            at_revision(settings.model, settings.revision), Store(settings.home), via=settings.via
        )
        config, _ = settle(engine_config(settings, directory), torch.device("cuda"))
        reserve = DRIVER_BYTES + MARGIN_BYTES
        budget = Budget(memory=memory, reserve=reserve)
        sizes, made = foreign.plan_for_gpu(read_foreign_config(directory), config, budget)
    except (StoreError, RunnerError) as error:
        raise PlanError(str(error)) from None
    steps = memory - reserve - sizes.weights - made.nbytes
    rows = [("weights", sizes.weights), ("steps", steps), ("reserve", reserve), ("KV cache", made.nbytes)]
    if not json_only:
        _tell(
            f"{name}: dtype {config.dtype}, via {config.via}",
            _table(rows, memory),
            f"The KV cache holds {made.num_tokens:,} tokens; the longest sequence has {made.max_model_len:,}. What "
            f"{config.via} takes in a step is not known: steps have what is left.",
        )
    _write(
        {
            "model": name,
            "dtype": config.dtype,
            "via": config.via,
            "memory": memory,
            **{what.lower().replace(" ", "_"): nbytes for what, nbytes in rows},
            "kv_cache_tokens": made.num_tokens,
            "max_model_len": made.max_model_len,
        }
    )


def _tell(head: str, table: Table, end: str) -> None:
    console = Console(stderr=True)
    console.print(head, highlight=False)
    console.print(table)
    console.print(end, highlight=False)


def _write(row: dict[str, object]) -> None:
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


def _table(rows: list[tuple[str, int]], memory: int) -> Table:
    table = Table()
    table.add_column("for")
    table.add_column("memory", justify="right")
    table.add_column("share", justify="right")
    for what, nbytes in rows:
        table.add_row(what, gib(nbytes), f"{nbytes / memory:.1%}")
    table.add_row("in all", gib(memory), "", end_section=True)
    return table
