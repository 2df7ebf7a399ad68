"""Room for adapters, as an engine's configuration asks for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from app.checkpoints.adapter import AdapterError, greatest_rank
from app.contract.config import AdapterSource, EngineConfig
from app.kernels.lora import MAX_RANK
from app.quant.adapters import AdapterLimits
from app.runner.errors import RunnerError

_LEAST_RANK = 16
"""Greatest rank that there is room for at least, where nobody says: most adapters have it or less."""
_log = logging.getLogger(__name__)


def adapter_limits(config: EngineConfig) -> AdapterLimits | None:
    """What a model has room for; None: it serves no adapters.

    Raises:
        RunnerError: the configuration asks for what is not served.
    """
    refuse_adapters(config, "several ranks", unless=config.tensor_parallel_size == 1)
    if config.max_adapters == 0:
        return None
    rank = config.max_adapter_rank or max(_LEAST_RANK, *_ranks(config.adapters))
    if rank > MAX_RANK:
        raise RunnerError(f"max_adapter_rank = {rank}: adapters of a rank up to {MAX_RANK} are served")
    return AdapterLimits(slots=config.max_adapters, rank=rank, max_tokens=config.max_num_batched_tokens)


def refuse_adapters(config: EngineConfig, what: str, *, unless: bool = False) -> None:
    """Raises :class:`RunnerError` if adapters are asked for, which ``what`` cannot serve."""
    if config.max_adapters and not unless:
        raise RunnerError(f"max_adapters = {config.max_adapters}: {what} cannot serve adapters")


def _ranks(sources: Iterable[AdapterSource]) -> Iterable[int]:
    """The greatest rank of each adapter that can be read; the others are told of when they are loaded."""
    yield 0
    for source in sources:
        try:
            yield greatest_rank(Path(source.path))
        except AdapterError as error:
            _log.debug("adapter %s: %s", source.name, error)
