"""Steps of a GPU, padded to the next of a few sizes and replayed as one recording of that size."""

from __future__ import annotations

import logging
import time
from typing import NoReturn

import torch

from app.contract.step import StepPlan, TokenMasks
from app.kernels.recorders import GraphRecorder, Work
from app.runner.execution.base import Executed
from app.runner.execution.buckets import Bucket, Buckets
from app.runner.execution.eager import EagerExecutor
from app.runner.execution.step import StepKernels
from app.runner.sampler import SampleParts, StagedSamples

_log = logging.getLogger(__name__)

_PADDED = SampleParts(top_k=True, top_p=True, min_p=True, penalties=False, min_tokens=False, logit_bias=False)
"""Optional parts of sampling that recordings have: those that cost nothing where a row does not use them."""


class BucketedExecutor:
    """See :class:`~app.runner.execution.base.Executor`. One recording a bucket; what fits none is launched op by op.

    A bucket's first step is launched op by op, which compiles and loads its kernels; its second is recorded, while the
    server serves. Kernels write into buffers that are given to them, so recordings hold no activations of their own;
    what libraries allocate comes from one pool that all recordings share, and what the driver takes is planned for
    (:attr:`nbytes`). Should it take more, further buckets are launched op by op.
    """

    def __init__(self, step: StepKernels, recorder: GraphRecorder, buckets: Buckets, *, num_layers: int) -> None:
        self._step = step
        self._recorder = recorder
        self._buckets = buckets
        self._eager = EagerExecutor(step)
        self.nbytes = buckets.nbytes(num_layers)
        self._recordings: dict[Bucket, Work | None] = {}
        """Recordings of the buckets seen so far; None where the bucket's next step is to be recorded."""
        self._full = False

    def run(self, plan: StepPlan, staged: StagedSamples, masks: TokenMasks | None = None) -> Executed:
        """Computes a step, padded if there is a bucket for it.

        A recording samples without masks. Where there are some, it is sampled again behind it: tokens follow from
        logits and counters alone, and nothing that a bucket has counts them.
        """
        bucket = self._bucket(plan, staged)
        if bucket is None:
            return self._eager.run(plan, staged, masks)
        with torch.inference_mode():
            self._step.stage(plan, staged, bucket)
        started = time.perf_counter()
        replayed = self._launch(bucket)
        if masks is not None:
            self._step.mask(masks)
            self._step.compute_samples(plan.num_logit_rows, len(staged.sampled), staged.parts.masked())
        return Executed(replayed, time.perf_counter() - started)

    def _bucket(self, plan: StepPlan, staged: StagedSamples) -> Bucket | None:
        """The bucket that the step is padded to; None where a row has several rows of logits, or asks for parts of
        sampling that recordings do not have."""
        parts = staged.parts
        if plan.num_logit_rows != len(staged.sampled) or parts.penalties or parts.min_tokens or parts.logit_bias:
            return None
        rows = len(plan.rows)
        return self._buckets.decodes(rows) if plan.is_decode else self._buckets.mixed(plan.num_tokens, rows)

    def _launch(self, bucket: Bucket) -> bool:
        """Launches the padded step that is staged; returns whether it was replayed as one recording."""
        recording = self._recordings.get(bucket)
        if recording is None and bucket in self._recordings and not self._full:
            recording = self._recordings[bucket] = self._recorder.record(lambda: self._compute(bucket))
            if recording is None:
                self._full = True
                _log.warning("no memory for more graphs: steps of other sizes are launched op by op")
        if recording is None:
            self._compute(bucket)
            self._recordings[bucket] = None
            return False
        recording()
        return True

    def _compute(self, bucket: Bucket) -> None:
        self._step.compute_bucket(bucket, self._buckets.max_seq_len, _PADDED)

    def profile_ops(self) -> NoReturn:
        """Always raises: what is recorded are launches, not ops."""
        self._eager.profile_ops()
