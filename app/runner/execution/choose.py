"""Chooses a runner's executor."""

from __future__ import annotations

import logging

from app.contract.config import EngineConfig
from app.kernels.dispatch import FallbackError, Mode
from app.kernels.recorders import GraphRecorder, ProgramRecorder, Recorder
from app.runner.errors import RunnerError
from app.runner.execution.base import Executor
from app.runner.execution.bucketed import BucketedExecutor
from app.runner.execution.buckets import Buckets
from app.runner.execution.eager import EagerExecutor
from app.runner.execution.recorded import RecordedExecutor
from app.runner.execution.step import StepKernels

_log = logging.getLogger(__name__)


def choose_executor(
    step: StepKernels, recorder: Recorder | None, config: EngineConfig, *, num_layers: int, max_model_len: int
) -> Executor:
    """The fastest executor that there is for a model's steps.

    Args:
        recorder: what :meth:`app.kernels.backend.Backend.recorder` gave.

    Raises:
        RunnerError: steps cannot be recorded, in strict mode.
    """
    if config.enforce_eager:
        return EagerExecutor(step)
    if isinstance(recorder, GraphRecorder):
        buckets = Buckets(
            max_rows=min(config.max_num_seqs, step.arena.max_logit_rows),
            max_tokens=config.max_num_batched_tokens,
            max_seq_len=max_model_len,
        )
        return BucketedExecutor(step, recorder, buckets, num_layers=num_layers)
    # A program does not stop where the ranks have to exchange their sums.
    if isinstance(recorder, ProgramRecorder) and config.tensor_parallel_size == 1:
        try:
            return RecordedExecutor(step, recorder)
        except FallbackError as error:
            if config.kernels == Mode.STRICT.value:
                raise RunnerError(str(error)) from None
            _log.info("steps are not recorded: %s", error)
    return EagerExecutor(step)
