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
    """See :class:`~app.runner.execution.base.Executor`. One recording for each variant of the sampling, and one of the
    sampling alone for masks that are made while the forward pass runs.

    Raises:
        FallbackError: a kernel of the step has no native form for its arguments; the message names it.
    """

    nbytes = 0

    def __init__(self, step: StepKernels, recorder: ProgramRecorder) -> None:
        self._step = step
        self._recorder = recorder
        self._programs: dict[SampleParts, Program] = {}
        self._samplings: dict[SampleParts, Program] = {}
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
        program = self._samplings.get(parts)
        if program is None:
            program = self._samplings[parts] = self._recorder.record(lambda: self._step.compute_whole_samples(parts))
        return program

    def run(self, plan: StepPlan, staged: StagedSamples, masks: TokenMasks | None = None) -> Executed:
        """Computes a step by its recording.

        Masks that nobody makes meanwhile are made first: after the forward pass their grammars have left the
        processor's caches. Others are waited for behind it, and a second recording samples.
        """
        extent = self._step.stage(plan, staged)
        parts, later = staged.recordable, masks
        if masks is not None and not masks.made_meanwhile:
            self._step.mask(masks)
            parts, later = parts.masked(), None
        program = self._program(parts)
        started = time.perf_counter()
        program.run(
            tokens=plan.num_tokens,
            rows=len(plan.rows),
            logits=plan.num_logit_rows,
            samples=0 if later else len(staged.sampled),
            max_seq_len=extent.max_seq_len,
            max_query_len=extent.max_query_len,
            op_ns=self._op_ns,
        )
        if later is not None:
            sampling = self._sampling(parts.masked())
            self._step.mask(later)
            sampling.run(logits=plan.num_logit_rows, samples=len(staged.sampled))
        return Executed(replayed=True, kernel_seconds=time.perf_counter() - started)

    def profile_ops(self) -> tuple[list[str], ctypes.Array[ctypes.c_uint64]]:
        """See :meth:`app.runner.execution.base.Executor.profile_ops`. Only steps of this variant may follow."""
        names = self._program(_PLAIN.recordable()).names
        self._op_ns = (ctypes.c_uint64 * len(names))()
        return names, self._op_ns
