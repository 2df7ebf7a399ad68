"""How much memory an engine will take, before anything is loaded: from shapes alone, and decided as it will decide."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from app.contract.config import EngineConfig
from app.contract.info import MemoryNeeds
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.kernels.collective import Ranks
from app.models.architectures import find
from app.runner.adapters import adapter_limits
from app.runner.device import available_memory, choose_device, choose_threads
from app.runner.foreign import plan as foreign
from app.runner.foreign.library import read_config as read_foreign_config
from app.runner.foreign.runner import settle
from app.runner.formats import choose_formats
from app.runner.kv_plan import plan_kv_cache
from app.runner.loading import decoder_bytes, encoder_bytes, read_model_config


def memory_needs(config: EngineConfig) -> MemoryNeeds:
    """What an engine with that configuration will say of its weights and its KV cache, all ranks together.

    Raises:
        ConfigError, WeightError, RunnerError: it would not start.
    """
    if config.via is not None:
        return _foreign_needs(config)
    model, size = read_model_config(Path(config.model_dir), [Path(file) for file in config.weights]), 1
    if find(model.architecture).generates:
        size = config.tensor_parallel_size
    ranks = Ranks(0, size)
    device = choose_device(config.device, ranks)
    dispatch.configure(dispatch.Mode(config.kernels), choose_threads(config.threads))
    config, placement = choose_formats(config, choose_backend(device), model)
    if not find(model.architecture).generates:
        return MemoryNeeds(weights=encoder_bytes(model, placement), kv_cache=0)
    placement = replace(placement, ranks=ranks, adapter_limits=adapter_limits(config))
    pages = plan_kv_cache(model, config).nbytes
    return MemoryNeeds(weights=size * decoder_bytes(model, placement), kv_cache=size * pages)


def _foreign_needs(config: EngineConfig) -> MemoryNeeds:
    config, device = settle(config)
    source = read_foreign_config(Path(config.model_dir))
    sizes = foreign.measure(source, config)
    memory = foreign.cache_memory(config, available_memory(device), device)
    return MemoryNeeds(weights=sizes.weights, kv_cache=foreign.plan_caches(source, sizes, config, memory).nbytes)


def main() -> None:
    """Answers an :class:`EngineConfig` on stdin with a :class:`MemoryNeeds` on stdout, both JSON."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    sys.stdout.buffer.write(msgspec.json.encode(memory_needs(config)))
