"""A model that several ranks share: this process is the first of them, and runs the others.

Every rank gets the bytes of the same :class:`~app.contract.step.StepPlan` and runs the step on its share of the model.
Logits are gathered by all, so that each rank samples the same tokens and knows which token a slot sampled last.

A rank that fails cannot be waited for by the others, nor caught up with: the runner is then lost as a whole.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.contract.step import Plan, StepPlan, StepResult, TokenMasks
from app.kernels.collective import Ranks
from app.models.architectures import find
from app.runner.encoding import EncodingRunner, make_encoding_runner
from app.runner.foreign.runner import ForeignRunner, make_foreign_runner
from app.runner.group import connect
from app.runner.loading import read_model_config
from app.runner.masks import with_masks
from app.runner.model_runner import ModelRunner, StepHandle
from app.runner.rank_processes import RankProcesses
from app.runner.start import load_runner, make_runner, settle_sizes, warm_up

_BLAME_SECONDS = 0.5
"""Seconds to wait for news of another rank's end, of which an error of this rank may only be the consequence."""


class ParallelRunner:
    """:class:`~app.runner.model_runner.ModelRunner`'s face to the engine, in front of several of them.

    The other ranks end with :meth:`close`, or when this object or its process is gone.
    """

    def __init__(self, first: ModelRunner, others: RankProcesses, size: int, weight_bytes: int) -> None:
        self._first = first
        self._others = others
        self.info = msgspec.structs.replace(
            first.info, weight_bytes=weight_bytes, kv_cache_bytes=first.info.kv_cache_bytes * size
        )
        """Facts about the model, bytes those of all ranks; norms are on each."""
        self.close = weakref.finalize(self, others.stop)
        """Ends the other ranks."""

    def submit(self, step: Plan, masks: TokenMasks | None = None) -> StepHandle:
        """Starts a step on every rank; its masks are waited for first, as they go with it.

        Raises:
            RunnerError: a rank is gone, and so are all.
        """
        if masks is not None and isinstance(step, StepPlan):
            step = with_masks(step, masks)
        self._others.send(step)
        try:
            return self._first.submit(step)
        except Exception as error:
            self._out_of_step(error)
            raise

    def collect(self, handle: StepHandle) -> StepResult:
        """Waits for a step's result; raises as :meth:`submit`."""
        try:
            result = self._first.collect(handle)
        except Exception as error:
            self._out_of_step(error)
            raise
        self._others.check()
        return result

    def _out_of_step(self, error: Exception) -> None:
        self._others.wait_lost(_BLAME_SECONDS)
        self._others.lose(f"rank 0: {type(error).__name__}: {error}")


def start_runner(
    config: EngineConfig,
    progress: Callable[[LoadProgress], None],
    on_lost: Callable[[str], None] = lambda _: None,
) -> ModelRunner | ParallelRunner | EncodingRunner | ForeignRunner:
    """Loads a model onto as many ranks as the config says and makes it ready for its first step.

    Args:
        progress: told of the first rank's phases, as by :func:`~app.runner.start.make_runner`.
        on_lost: called from any thread when a rank is gone after that: no step succeeds any more, and one that is
            under way on a GPU may never end.

    Raises:
        ConfigError, WeightError, RunnerError: as ``make_runner``, of any rank; or the model cannot be shared out so.
    """
    if config.via is not None:
        return make_foreign_runner(config, progress)
    if not find(read_model_config(Path(config.model_dir)).architecture).generates:
        return make_encoding_runner(config, progress)
    size = config.tensor_parallel_size
    if size == 1:
        return make_runner(config, progress)
    ranks = Ranks(0, size)
    config = settle_sizes(config, ranks)
    ready = threading.Event()
    others = RankProcesses(config, lambda reason: on_lost(reason) if ready.is_set() else None)
    try:
        first = load_runner(config, progress, ranks)
        weight_bytes = others.wait_loaded()
        connect(ranks, torch.device(first.info.device), others.meeting)
        warm_up(first, progress)
        others.check()
    except BaseException:
        others.stop()
        raise
    ready.set()
    return ParallelRunner(first, others, size, first.info.weight_bytes + weight_bytes)
