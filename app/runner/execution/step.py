"""A step's buffers and kernels, in the one order that every executor has: fill, stage, upload, compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.contract.step import StepPlan, TokenMasks
from app.kernels.pages import Pages
from app.kernels.types import StepArena
from app.models.base import Decoder
from app.runner.execution.buckets import Bucket
from app.runner.input_batch import InputBatch, StepExtent, StepInputs
from app.runner.sampler import SampleParts, Sampler, StagedSamples


class StepKernels:
    """All kernels of a step, over a runner's buffers.

    Args:
        pages: pages of each layer.
        group_of_layer: index of each layer's KV group.
    """

    def __init__(
        self,
        model: Decoder,
        pages: Sequence[Pages],
        group_of_layer: Sequence[int],
        *,
        batch: InputBatch,
        sampler: Sampler,
        arena: StepArena,
        logits_LV: Tensor,
    ) -> None:
        self._model, self._pages, self._group_of_layer = model, pages, group_of_layer
        self._batch, self._sampler, self._logits_LV = batch, sampler, logits_LV
        self.arena = arena

    def stage(self, plan: StepPlan, staged: StagedSamples, bucket: Bucket | None = None) -> StepExtent:
        """Fills the buffers and copies them to the device.

        Args:
            staged: samples of the same step; their parameters are in the sampler's buffers already.
            bucket: the size that the step is padded to.

        Raises:
            RunnerError: the step does not fit the buffers.
        """
        extent = self._batch.fill(plan, bucket)
        if bucket is not None:
            self._sampler.pad(len(staged.sampled), bucket.rows)
        self._batch.upload()
        self._sampler.upload()
        return extent

    @torch.inference_mode()
    def compute(
        self, plan: StepPlan, staged: StagedSamples, extent: StepExtent, masks: TokenMasks | None = None
    ) -> None:
        """Runs the kernels of the step that is staged, at its own size; waits for its masks before it samples."""
        inputs = self._batch.views(plan.num_tokens, len(plan.rows), plan.num_logit_rows, extent)
        samples = len(staged.sampled)
        self._launch(inputs, plan.num_tokens, plan.num_logit_rows, 0 if masks else samples, staged.parts)
        if masks is not None:
            self.mask(masks)
            self.compute_samples(plan.num_logit_rows, samples, staged.parts.masked())

    def mask(self, masks: TokenMasks) -> None:
        """Waits for a step's masks and brings them to the device."""
        self._sampler.mask(masks)

    @torch.inference_mode()
    def compute_samples(self, logits: int, samples: int, parts: SampleParts) -> None:
        """Samples alone, of logits that are there."""
        self._sampler.launch(self._logits_LV[:logits], samples, parts)

    @torch.inference_mode()
    def compute_whole_samples(self, parts: SampleParts) -> None:
        """:meth:`compute_samples` at the buffers' full size: only to be recorded."""
        self._sampler.launch(self._logits_LV, self._sampler.max_samples, parts)

    @torch.inference_mode()
    def compute_bucket(self, bucket: Bucket, max_seq_len: int, parts: SampleParts) -> None:
        """Runs the kernels of a bucket's size, over whatever is staged."""
        rows = bucket.rows
        inputs = self._batch.views(bucket.tokens, rows, rows, StepExtent(bucket.max_query_len, max_seq_len))
        self._launch(inputs, bucket.tokens, rows, rows, parts)

    @torch.inference_mode()
    def compute_whole(self, parts: SampleParts) -> None:
        """Runs the kernels over the buffers at their full size: only to be recorded."""
        logits = self._logits_LV.shape[0]
        self._launch(self._batch.whole(), self.arena.max_rows, logits, self._sampler.max_samples, parts)

    def _launch(self, inputs: StepInputs, num_tokens: int, logits: int, samples: int, parts: SampleParts) -> None:
        self.arena.begin(num_tokens)
        self._batch.expand(inputs, self._sampler.last_token)
        tokens = inputs.tokens
        metas = [inputs.metas[group] for group in self._group_of_layer]
        hidden_TD = self._model.forward(tokens.token_ids, tokens.positions, self._pages, metas, self.arena)
        logits_LV = self._logits_LV[:logits]
        if logits:
            self._model.logits(hidden_TD, tokens.logit_indices, logits_LV, self.arena)
        if samples:
            self._sampler.launch(logits_LV, samples, parts)
