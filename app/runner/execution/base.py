"""What the runner asks of an executor."""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Protocol

from app.contract.step import StepPlan, TokenMasks
from app.runner.sampler import StagedSamples


class Executed(NamedTuple):
    """A step that was run, or on a GPU launched."""

    replayed: bool
    """Whether the step ran as one call of a recording, not op by op."""
    kernel_seconds: float
    """Seconds that the step's kernels ran; on a GPU, that launching them took."""


class Executor(Protocol):
    """Runs steps whose samples are staged."""

    @property
    def nbytes(self) -> int:
        """Bytes that recordings may come to take of a GPU's memory."""

    def run(self, plan: StepPlan, staged: StagedSamples, masks: TokenMasks | None = None) -> Executed:
        """Stages the rest of the step and computes it.

        Args:
            masks: masks of the samples; waited for once nothing but the sampling is left.

        Raises:
            RunnerError: the step does not fit the buffers.
        """

    def profile_ops(self) -> tuple[list[str], ctypes.Array[ctypes.c_uint64]]:
        """Names of the recorded ops of a step without penalties, and the nanoseconds that each takes from here on.

        Raises:
            RunnerError: steps are not recorded here.
        """
