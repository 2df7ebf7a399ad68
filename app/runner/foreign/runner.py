"""Runs step plans on a model of transformers, a row at a time: slow, and for every causal language model that it has.

Logits are theirs; sampling, penalties and log-probabilities are those of every other model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec
import torch

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.contract.info import RunnerInfo
from app.contract.step import EncodeBatch, Plan, ScheduledRow, StepResult, TokenMasks
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.runner.adapters import refuse_adapters
from app.runner.device import META, available_memory, choose_device, choose_dtype, choose_threads, set_threads
from app.runner.errors import RunnerError
from app.runner.foreign.library import read_config
from app.runner.foreign.model import ForeignModel, Past, load_model, weight_bytes
from app.runner.foreign.plan import ForeignPlan, Sizes, cache_memory, plan_caches
from app.runner.loading import Phases
from app.runner.model_runner import StepHandle
from app.runner.sampler import Sampler
from app.runner.start import warm_up

TRANSFORMERS = "transformers"
"""Value of ``via``."""


class ForeignRunner:
    """One model of transformers with what it keeps of each slot's sequence.

    Implements :class:`app.engine.runner.Runner`. On a CPU a step is computed within :meth:`submit`.

    Blocks hold nothing, they count tokens: a sequence whose block has gone to another one has ended, and what the model
    kept of it is freed. So no more is kept than the blocks allow.
    """

    def __init__(self, model: ForeignModel, plan: ForeignPlan, config: EngineConfig) -> None:
        self._model, self._plan, self._config = model, plan, config
        max_logit_rows = min(config.max_logit_rows, config.max_num_batched_tokens)
        self._logits_LV = torch.empty(max_logit_rows, model.vocab_size, dtype=torch.float32, device=model.device)
        self._sampler = Sampler(
            config.max_num_seqs,
            model.vocab_size,
            model.device,
            workspace=choose_backend(model.device).sample_workspace(config.max_num_seqs, model.vocab_size),
        )
        self._slots: dict[int, Past] = {}
        """What is kept for each slot."""
        self._owners: dict[int, Past] = {}
        """Block -> what is kept of the sequence that it was given to last."""

    @cached_property
    def info(self) -> RunnerInfo:
        """Facts about the model."""
        return RunnerInfo(
            max_model_len=self._plan.max_model_len,
            vocab_size=self._model.vocab_size,
            num_parameters=self._model.num_parameters,
            weight_bytes=self._model.weight_bytes,
            kv_cache=self._plan.spec,
            kv_cache_bytes=self._plan.nbytes,
            dtype=self._config.dtype,
            device=self._config.device,
            via=TRANSFORMERS,
        )

    @property
    def num_kept(self) -> int:
        """Tokens of all sequences of which something is kept, those that have ended included."""
        return sum(max(0, past.num_tokens) for past in self._slots.values())

    def submit(self, step: Plan, masks: TokenMasks | None = None) -> StepHandle:
        """Computes a step of at least one row.

        Args:
            masks: masks of its samples.

        Raises:
            RunnerError: a row does not follow what its slot has read. As after any exception, the step's slots must be
                bound anew.
        """
        if isinstance(step, EncodeBatch):
            raise RunnerError("this model does not encode")
        self._sampler.bind(step.slots)
        for init in step.slots:
            if (ended := self._slots.get(init.slot)) is not None:
                ended.drop()
            self._slots[init.slot] = Past()
        for row in step.rows:
            self._give(row)
        started = time.perf_counter()
        end = 0
        for row in step.rows:
            start, end = end, end + row.num_tokens - row.logits_start
            self._logits_LV[start:end] = self._compute(row)
        seconds = time.perf_counter() - started
        pending = self._sampler.sample(self._logits_LV, step.rows, masks) if step.num_logit_rows else None
        return StepHandle(pending, len(step.rows), replayed=False, kernel_seconds=seconds)

    def collect(self, handle: StepHandle) -> StepResult:
        """Waits for a step's result, one output a row."""
        return handle.result()

    def _give(self, row: ScheduledRow) -> None:
        """Notes a row's new blocks, and frees what was kept of the sequences that had them."""
        past = self._slots[row.slot]
        for block in row.new_block_ids[0] if row.new_block_ids else ():
            before = self._owners.get(block)
            if before is not None and before is not past:
                before.drop()
            self._owners[block] = past

    def _compute(self, row: ScheduledRow) -> torch.Tensor:
        """A row's logits [L, V]."""
        past, last = self._slots[row.slot], self._sampler.last_token
        if past.num_tokens != row.start:
            raise RunnerError(f"slot {row.slot} has read {past.num_tokens} tokens, its row begins at {row.start}")
        if row.token_ids is None:
            token_ids = last[row.slot : row.slot + 1]
        else:
            token_ids = torch.tensor(row.token_ids, dtype=torch.int64, device=last.device)
        return self._model.read(past, token_ids, row.num_tokens - row.logits_start)


def make_foreign_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> ForeignRunner:
    """Loads a model by transformers and makes it ready for its first step.

    Args:
        progress: told of the phases ``config``, ``weights`` (in bytes), ``kv_cache`` (in bytes) and ``warmup``.

    Raises:
        RunnerError: transformers has no such model or cannot load it, a setting is not for such models, or the device,
            dtype or memory asked for is not there.
    """
    phases = Phases(progress)
    phases.begin("config")
    config, device = settle(config)
    dtype = choose_dtype(config.dtype, device)
    source = read_config(Path(config.model_dir))
    needed, available = weight_bytes(source.build(META, dtype)), available_memory(device)
    if needed > available:
        raise RunnerError(f"weights of {needed} bytes do not fit into the {available} bytes available")
    phases.begin("weights")
    model = ForeignModel(load_model(source, config, device, dtype))
    phases.update(needed, needed)
    phases.begin("kv_cache")
    sizes = Sizes(weights=needed, per_token=model.bytes_per_token, per_sequence=model.bytes_per_sequence)
    plan = plan_caches(source, sizes, config, cache_memory(config, available_memory(device), device))
    runner = ForeignRunner(model, plan, config)
    phases.update(plan.nbytes, plan.nbytes)
    warm_up(runner, progress)
    return runner


def settle(config: EngineConfig, device: torch.device | None = None) -> tuple[EngineConfig, torch.device]:
    """The config with every ``auto`` decided, and the device, with this process's threads and kernels set up.

    Args:
        device: where the model is to run; None: where the config says.

    Raises:
        RunnerError: a setting is not for models of transformers.
    """
    refuse_adapters(config, f"a model via {TRANSFORMERS}")
    if config.via != TRANSFORMERS:
        raise RunnerError(f"via = {config.via!r} is not supported; use {TRANSFORMERS!r}")
    if any(file.endswith(".gguf") for file in config.weights):
        raise RunnerError(f"via {TRANSFORMERS} no GGUF files are read: name a directory with safetensors")
    if config.tensor_parallel_size > 1:
        raise RunnerError(
            f"tensor_parallel_size = {config.tensor_parallel_size}: a model via {TRANSFORMERS} runs on one rank"
        )
    if config.quantization not in ("none", "auto"):
        raise RunnerError(
            f"quantization = {config.quantization!r}: via {TRANSFORMERS} only floating weights are served"
        )
    if config.kernels == dispatch.Mode.STRICT.value:
        raise RunnerError(f"kernels = 'strict', but via {TRANSFORMERS} none of ours compute a model")
    device = device or choose_device(config.device)
    dtype = str(choose_dtype(config.dtype, device)).removeprefix("torch.")
    if config.kv_cache_dtype not in ("auto", dtype):
        raise RunnerError(
            f"kv_cache_dtype = {config.kv_cache_dtype!r}: via {TRANSFORMERS} caches are kept in dtype = {dtype!r}"
        )
    threads = choose_threads(config.threads)
    set_threads(threads)
    dispatch.configure(dispatch.Mode(config.kernels), threads)
    return msgspec.structs.replace(config, device=str(device), dtype=dtype, quantization="none"), device
