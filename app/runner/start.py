"""Makes a runner that is ready for steps of an engine's configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.contract.info import RunnerInfo
from app.contract.request import SamplingParams
from app.contract.step import ScheduledRow, SlotInit, StepPlan, StepResult
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.kernels.collective import ONE_RANK, Ranks
from app.models.config import ModelConfig
from app.quant.placement import Placement
from app.runner.adapters import adapter_limits
from app.runner.device import META, available_memory, choose_device, choose_threads, has_own_memory, set_threads
from app.runner.errors import RunnerError
from app.runner.formats import choose_formats
from app.runner.kv_plan import KVCachePlan, Sizes, plan_kv_cache
from app.runner.loading import (
    Phases,
    build_model,
    check_memory,
    check_shares,
    load_model,
    read_model_config,
    with_block_types,
)
from app.runner.memory import MARGIN_BYTES, Budget, Footprint, MemoryPlan, gib, plan_memory
from app.runner.model_runner import ModelRunner, StepHandle

_log = logging.getLogger(__name__)


def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> ModelRunner:
    """Loads a whole model and makes it ready for its first step.

    Args:
        progress: told of the phases ``config``, ``weights`` (in bytes), ``kv_cache`` (in bytes) and ``warmup``.

    Raises:
        ConfigError: the model's config.json is missing, malformed or not supported.
        WeightError: the weights do not fit the config, or cannot be read.
        RunnerError: the device, dtype or memory asked for is not there.
    """
    runner = load_runner(config, progress, ONE_RANK)
    warm_up(runner, progress)
    return runner


def load_runner(config: EngineConfig, progress: Callable[[LoadProgress], None], ranks: Ranks) -> ModelRunner:
    """Loads a rank's share of a model, with all of :func:`make_runner`'s phases but ``warmup``.

    Args:
        ranks: as many ranks as the config says. They have to be connected before the first step.

    Raises:
        ConfigError, WeightError, RunnerError: as :func:`make_runner`.
    """
    phases = Phases(progress)
    phases.begin("config")
    model_config = _read_model_config(config)
    config, placement, plan = _settle(config, model_config, ranks)
    phases.begin("weights")
    model = load_model(
        model_config, config, max_positions=plan.max_model_len, placement=placement, progress=phases.update
    )
    phases.begin("kv_cache")
    runner = ModelRunner(model, model_config, plan, config, choose_backend(placement.device))
    phases.update(plan.nbytes, plan.nbytes)
    return runner


def settle_sizes(config: EngineConfig, ranks: Ranks) -> EngineConfig:
    """The config with the sizes of the KV cache and of the longest sequence chosen by this rank.

    All ranks need the same sizes.

    Raises:
        ConfigError, WeightError, RunnerError: as :func:`make_runner`.
    """
    _, _, plan = _settle(config, _read_model_config(config), ranks)
    return msgspec.structs.replace(config, num_blocks=plan.num_blocks, max_model_len=plan.max_model_len)


def _read_model_config(config: EngineConfig) -> ModelConfig:
    return read_model_config(Path(config.model_dir), [Path(file) for file in config.weights])


def _settle(
    config: EngineConfig, model_config: ModelConfig, ranks: Ranks
) -> tuple[EngineConfig, Placement, KVCachePlan]:
    """Decides what the config leaves open, and sets up this process's threads and kernels."""
    if ranks.size != config.tensor_parallel_size:
        raise RunnerError(f"tensor_parallel_size = {config.tensor_parallel_size} needs ranks, which are not there")
    check_shares(model_config, ranks.size)
    device = choose_device(config.device, ranks)
    threads = max(1, choose_threads(config.threads) // ranks.size)
    set_threads(threads)
    dispatch.configure(dispatch.Mode(config.kernels), threads)
    config, placement = choose_formats(config, choose_backend(device), model_config)
    placement = with_block_types(placement, config, model_config)
    placement = replace(placement, ranks=ranks, adapter_limits=adapter_limits(config))
    if has_own_memory(device) and config.num_blocks is None:
        budget = Budget(memory=available_memory(device), reserve=MARGIN_BYTES)
        made = plan_for_gpu(model_config, config, placement, budget)
        _log.info("memory: %s", ", ".join(f"{what} {gib(nbytes)}" for what, nbytes in made.rows()))
        config = msgspec.structs.replace(config, num_blocks=made.kv.num_blocks)
        return config, placement, plan_kv_cache(model_config, config)
    plan = plan_kv_cache(model_config, config)
    check_memory(model_config, plan, placement, tier_bytes=config.prefix_cache_ram or 0)
    return config, placement, plan


def plan_for_gpu(model_config: ModelConfig, config: EngineConfig, placement: Placement, budget: Budget) -> MemoryPlan:
    """How the memory of a GPU, each rank's if there are several, would be split; the GPU need not be there.

    Args:
        config: with the formats chosen (:func:`app.runner.formats.choose_formats`).

    Raises:
        RunnerError: memory is too small, see :func:`app.runner.memory.plan_memory`; or so many ranks cannot share the
            model.
    """
    ranks = Ranks(0, config.tensor_parallel_size)
    check_shares(model_config, ranks.size)

    def measure(config: EngineConfig, placement: Placement) -> Footprint:
        longest = config.max_model_len or model_config.context_length
        limits = adapter_limits(config)
        model = build_model(model_config, longest, replace(placement, device=META, ranks=ranks, adapter_limits=limits))
        sizes = Sizes(model_config, config)
        spec = sizes.plan((1,) * len(sizes.groups)).spec
        return ModelRunner(model, model_config, KVCachePlan(spec, longest), config, choose_backend(META)).footprint()

    return plan_memory(model_config, config, placement, budget, measure)


class StepRunner(Protocol):
    """What runs steps of rows."""

    @property
    def info(self) -> RunnerInfo:
        """Facts about the model."""

    def submit(self, step: StepPlan, /) -> StepHandle:
        """Starts a step."""

    def collect(self, handle: StepHandle, /) -> StepResult:
        """Waits for a step's result."""


def warm_up(runner: StepRunner, progress: Callable[[LoadProgress], None]) -> None:
    """Runs one step, so that buffers made on first use exist before the first request. What it writes is never read."""
    phases = Phases(progress)
    phases.begin("warmup")
    init = SlotInit(
        slot=0, sampling=SamplingParams(temperature=0.0), seed=0, sample_index=0, prompt_len=1, stop_token_ids=[]
    )
    row = ScheduledRow(
        slot=0,
        start=0,
        num_tokens=1,
        token_ids=[0],
        new_block_ids=[[0] for _ in runner.info.kv_cache.groups],
        logits_start=0,
        num_samples=1,
    )
    runner.collect(runner.submit(StepPlan(step=0, slots=[init], rows=[row], num_tokens=1, num_logit_rows=1)))
    phases.update(1, 1)
