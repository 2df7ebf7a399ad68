"""Steps of a CPU, each replayed as one call.

A recording is a program of native kernels that read the step's size from its header: one serves every batch, prefill
and decode alike, nothing is padded.
"""

from __future__ import annotations

import ctypes
import time

from app.contract.step import StepPlan, TokenMasks
from app.kernels.native.program import Program
from app.kernels.recorders import ProgramRecorder
from app.runner.execution.base import Executed
from app.runner.execution.step import StepKernels
from app.runner.sampler import SampleParts, StagedSamples

_PLAIN = SampleParts(top_k=False, top_p=False, min_p=False, penalties=False, min_tokens=False, logit_bias=False)


class RecordedExecutor:
    """See :class:`~app.runner.execution.base.Executor`. One recording for each variant of the sampling; of those with
    masks, of the sampling alone.

    Raises:
        FallbackError: a kernel of the step has no native form for its arguments; the message names it.
    """

    nbytes = 0

    def __init__(self, step: StepKernels, recorder: ProgramRecorder) -> None:
        self._step = step
        self._recorder = recorder
        self._programs: dict[SampleParts, Program] = {}
        self._op_ns: ctypes.Array[ctypes.c_uint64] | None = None
        """Nanoseconds of each op, added up while steps are profiled."""
        self._program(_PLAIN.recordable())

    def _program(self, parts: SampleParts) -> Program:
        """The recording of a variant, made when first asked for."""
        program = self._programs.get(parts)
        if program is None:
            program = self._programs[parts] = self._recorder.record(lambda: self._step.compute_whole(parts))
        return program

    def _sampling(self, parts: SampleParts) -> Program:
        """The recording of a masked variant's sampling alone, made when first asked for."""
        program = self._programs.get(parts)
        if program is None:
            program = self._programs[parts] = self._recorder.record(lambda: self._step.compute_whole_samples(parts))
        return program

    def run(self, plan: StepPlan, staged: StagedSamples, masks: TokenMasks | None = None) -> Executed:
        """Computes a step by its recording; one with masks is sampled by a second one, when they are there."""
        extent = self._step.stage(plan, staged)
        program = self._program(staged.recordable)
        started = time.perf_counter()
        program.run(
            tokens=plan.num_tokens,
            rows=len(plan.rows),
            logits=plan.num_logit_rows,
            samples=0 if masks else len(staged.sampled),
            max_seq_len=extent.max_seq_len,
            max_query_len=extent.max_query_len,
            op_ns=self._op_ns,
        )
        if masks is not None:
            sampling = self._sampling(staged.recordable.masked())
            self._step.mask(masks)
            sampling.run(logits=plan.num_logit_rows, samples=len(staged.sampled))
        return Executed(replayed=True, kernel_seconds=time.perf_counter() - started)

    def profile_ops(self) -> tuple[list[str], ctypes.Array[ctypes.c_uint64]]:
        """See :meth:`app.runner.execution.base.Executor.profile_ops`. Only steps of this variant may follow."""
        names = self._program(_PLAIN.recordable()).names
        self._op_ns = (ctypes.c_uint64 * len(names))()
        return names, self._op_ns
