"""Steps launched op by op."""

from __future__ import annotations

import time
from typing import NoReturn

import torch

from app.contract.step import StepPlan, TokenMasks
from app.runner.errors import RunnerError
from app.runner.execution.base import Executed
from app.runner.execution.step import StepKernels
from app.runner.sampler import StagedSamples


class EagerExecutor:
    """See :class:`~app.runner.execution.base.Executor`."""

    nbytes = 0

    def __init__(self, step: StepKernels) -> None:
        self._step = step

    def run(self, plan: StepPlan, staged: StagedSamples, masks: TokenMasks | None = None) -> Executed:
        """Computes a step at its own size."""
        with torch.inference_mode():
            extent = self._step.stage(plan, staged)
        started = time.perf_counter()
        self._step.compute(plan, staged, extent, masks)
        return Executed(replayed=False, kernel_seconds=time.perf_counter() - started)

    def profile_ops(self) -> NoReturn:
        """Always raises: there is nothing recorded."""
        raise RunnerError("steps of this model are not recorded here")
