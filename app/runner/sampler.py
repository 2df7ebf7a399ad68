"""Samples a step's logits, by the parameters that are bound to its slots.

Shape suffixes: L rows of logits, R samples, S slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.contract.step import ScheduledRow, SlotInit, TokenMasks
from app.kernels.sample import MinTokens, Penalties, SampleParams, record_tokens, sample
from app.kernels.sample.workspace import SampleWorkspace
from app.runner.errors import RunnerError
from app.runner.pending_sample import RESULT_BYTES, PendingSample, Reports
from app.runner.slot_params import NUM_KERNEL_INTS, FloatParam, IntParam, SlotParams
from app.runner.staging import Returns, StagedPack, to_device


@dataclass(frozen=True, slots=True)
class SampleParts:
    """Which optional parts of sampling some row of a step uses."""

    top_k: bool
    top_p: bool
    min_p: bool
    penalties: bool
    min_tokens: bool
    logit_bias: bool
    token_mask: bool = False
    """Whether the step has masks. They are there only after its forward pass: :meth:`masked`."""

    def masked(self) -> SampleParts:
        """These, and masks."""
        return replace(self, token_mask=True)

    def recordable(self) -> SampleParts:
        """A superset with few variants: what the kernel skips row by row at no cost is always there."""
        return replace(self, top_k=True, top_p=True, min_p=True, min_tokens=True)


@dataclass(frozen=True, slots=True)
class StagedSamples:
    """A step's samples, their parameters staged in the sampler's buffers."""

    rows: Sequence[ScheduledRow]
    """Rows of the step."""
    slots: NDArray[np.int64]
    """[R]: slot of each sample."""
    ends: NDArray[np.int64]
    """[rows of the step]: end of each row's logits."""
    sampled: list[int]
    """Index of the row of each sample; a row that verifies drafts has several samples, one behind the other."""
    drafts: dict[int, list[int]]
    """Drafts of the rows that have some, by index of the row: the tokens that all its samples but the last verify."""
    parts: SampleParts
    recordable: SampleParts
    """``parts.recordable()``."""
    reported: list[int]
    """Indices, among the samples, of those that want log-probabilities."""
    masked_below: int
    """Position from which on no sample has tokens masked by ``min_tokens``."""


class Sampler:
    """Samples the rows of a step, by the parameters bound to their slots.

    A request's tokens depend only on its logits, parameters, seed and positions: not on its slot, on other rows, or on
    whether it was preempted on the way.
    """

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        device: torch.device,
        *,
        max_samples: int = 0,
        workspace: SampleWorkspace | None = None,
        padded: bool = False,
    ) -> None:
        """
        Args:
            num_slots: slots that requests are bound to.
            max_samples: samples of a step, at most, if there may be more than one a slot.
            workspace: what :meth:`app.kernels.backend.Backend.sample_workspace` made.
            padded: there is one slot more, the last, for rows that pad a step.
        """
        self._workspace = workspace
        self._num_slots = num_slots
        self._max_samples = max_samples = max(num_slots, max_samples)
        # A masked sample behind a draft has a row of the tables to itself: its mask is not that of its slot.
        spare = max_samples if max_samples > num_slots else 0
        self._first_spare = num_slots + padded
        self._last_tokens = torch.zeros(self._first_spare + spare, dtype=torch.int64, device=device)
        self.last_token = self._last_tokens[: self._first_spare]
        """[S] int64: the token that each slot sampled last, the slot of padding rows included."""
        self._device = device
        self._params = SlotParams(num_slots, vocab_size, device, padded=padded, spare=spare)
        self._floats, self._ints = self._params.floats, self._params.ints
        # Parameters of the step's samples, at addresses that stay.
        dtypes = (*(torch.int64,) * (3 + NUM_KERNEL_INTS), *(torch.float32,) * len(FloatParam), torch.bool)
        self._pack = StagedPack([(max_samples, dtype) for dtype in dtypes], device)
        self._logit_rows, self._slots, self._positions, *others = self._pack.buffers
        self._row_ints, self._row_floats = others[:NUM_KERNEL_INTS], others[NUM_KERNEL_INTS:-1]
        self._active = others[-1]
        # Tokens, then whether each sample failed, in one piece of memory: one copy brings both to the host.
        self._results = torch.zeros(max_samples * RESULT_BYTES, dtype=torch.uint8, device=device)
        self._tokens = self._results[: max_samples * torch.int64.itemsize].view(torch.int64)
        self._failed = self._results[max_samples * torch.int64.itemsize :].view(torch.bool)
        self._returns = Returns(device)
        self._fetch_results = self._returns.of(self._results)
        self._mask_rows: dict[int, list[int]] = {}
        """Rows of the table of masks for the staged samples of a slot, where they are more than its own."""
        self._decoding: tuple[list[int], StagedSamples] | None = None
        """Slots and samples of the step before; None if it was no decode, or a slot was bound since."""

    @property
    def on_demand_bytes(self) -> int:
        """Bytes of the vocabulary-wide tables that no request has asked for yet, by penalties, biases and the like."""
        return self._params.on_demand_bytes

    @property
    def max_samples(self) -> int:
        """Samples of one step, at most."""
        return self._max_samples

    def last_tokens(self) -> list[int]:
        """The token that each slot sampled last, once the device has computed the steps under way."""
        tokens: list[int] = self.last_token[: self._num_slots].tolist()
        return tokens

    def bind(self, slots: Sequence[SlotInit]) -> None:
        """Binds slots to new or resumed requests; whatever they held before is gone."""
        if slots:
            self._decoding = None
        for init in slots:
            self._params.bind(init)

    def _ids(self, token_ids: list[int]) -> Tensor:
        return to_device(np.array(token_ids, dtype=np.int64), self._device)

    def sample(self, logits_LV: Tensor, rows: Sequence[ScheduledRow], masks: TokenMasks | None = None) -> PendingSample:
        """:meth:`stage`, :meth:`mask`, :meth:`launch` and :meth:`finish` in one."""
        staged = self.stage(rows, masks)
        if staged.sampled:
            self.upload()
            if masks is not None:
                self.mask(masks)
            self.launch(logits_LV, len(staged.sampled), staged.parts.masked() if masks else staged.parts)
        return self.finish(logits_LV, staged)

    def stage(self, rows: Sequence[ScheduledRow], masks: TokenMasks | None = None) -> StagedSamples:
        """Fills the buffers with the parameters of a step's samples.

        Args:
            rows: the step's rows; each wants logits of its positions ``logits_start`` to ``num_tokens``.
            masks: masks that :meth:`mask` will bring.

        Raises:
            RunnerError: there are more samples than the buffers hold, a row with drafts has penalties or both masks and
                a bias, or a row's logprob targets do not match its positions.
        """
        slots = [row.slot for row in rows]
        decodes = all(_is_decode(row) for row in rows)
        if decodes and self._decoding is not None and slots == self._decoding[0]:
            staged = self._decoding[1]
            positions = [row.start + 1 for row in rows]
            if min(positions) >= staged.masked_below:
                self._positions.array[: len(slots)] = positions
                return staged  # all else is as it was
        masked = frozenset(masks.slots if masks else ())
        self._check_rows(rows, masked)
        staged = self._stage(rows, np.array(slots, dtype=np.int64), masked)
        self._decoding = (slots, staged) if decodes and not staged.parts.min_tokens else None
        return staged

    def _check_rows(self, rows: Sequence[ScheduledRow], masked: frozenset[int]) -> None:
        if (num_samples := sum(row.num_samples for row in rows)) > self._max_samples:
            raise RunnerError(f"a step of {num_samples} samples, the buffers hold {self._max_samples}")
        for row in rows:
            if row.num_samples > 1 and _penalized(self._floats[:, row.slot]):
                raise RunnerError(f"slot {row.slot} has penalties, which would have to count its drafts")
            if row.num_samples > 1 and row.slot in masked and self._ints[IntParam.BIASED, row.slot]:
                raise RunnerError(f"slot {row.slot} has masks and a bias, which no row of drafts may have both")
            unsampled = row.num_tokens - row.logits_start - row.num_samples
            if unsampled != len(row.logprob_targets):
                message = f"slot {row.slot} has {unsampled} positions for {len(row.logprob_targets)} logprob targets"
                raise RunnerError(message)

    def _stage(self, rows: Sequence[ScheduledRow], slots: NDArray[np.int64], masked: frozenset[int]) -> StagedSamples:
        ends = np.cumsum([row.num_tokens - row.logits_start for row in rows])
        sampled, before_end, positions = list[int](), list[int](), list[int]()
        for index, row in enumerate(rows):
            for left in range(row.num_samples, 0, -1):
                sampled.append(index)
                before_end.append(left)
                positions.append(row.start + row.num_tokens + 1 - left)
        count = len(sampled)
        own = slots[sampled]
        floats, ints = np.take(self._floats, own, axis=1), np.take(self._ints, own, axis=1)
        self._logit_rows.array[:count] = ends[sampled] - before_end
        self._slots.array[:count] = own
        self._mask_rows = {}
        if masked and max(before_end, default=0) > 1:
            self._spare_rows(rows, masked)
        self._positions.array[:count] = positions
        active = np.array(positions, dtype=np.int64) < ints[IntParam.MIN_LEN]
        self._active.array[:count] = active
        for buffer, values in zip(self._row_floats, floats, strict=True):
            buffer.array[:count] = values
        for buffer, values in zip(self._row_ints, ints, strict=False):
            buffer.array[:count] = values
        parts = _parts(floats, ints, active)
        if parts.penalties:
            self._params.output_counts.touch(own.tolist())
        return StagedSamples(
            rows=rows,
            slots=own,
            ends=ends,
            sampled=sampled,
            drafts=_drafts(rows) if count and max(before_end) > 1 else {},
            parts=parts,
            recordable=parts.recordable(),
            reported=np.flatnonzero(ints[IntParam.LOGPROBS] >= 0).tolist(),
            masked_below=int(ints[IntParam.MIN_LEN].max(initial=0)),
        )

    def _spare_rows(self, rows: Sequence[ScheduledRow], masked: frozenset[int]) -> None:
        """Gives the samples behind drafts that have masks rows of the tables to themselves."""
        spare, sample = self._first_spare, 0
        for row in rows:
            behind = row.num_samples - 1 if row.slot in masked else 0
            if behind > 0:
                own = list(range(spare, spare + behind))
                spare += behind
                self._slots.array[sample + 1 : sample + 1 + behind] = own
                self._mask_rows[row.slot] = [row.slot, *own]
            sample += row.num_samples

    def pad(self, count: int, to: int) -> None:
        """Adds greedy samples whose tokens are not read behind the staged ones, on a GPU.

        Args:
            count: samples that are staged.
            to: samples that there are to be.
        """
        added = slice(count, to)
        self._logit_rows.array[added] = np.arange(count, to)
        self._slots.array[added] = self._num_slots
        self._positions.array[added] = 0
        self._active.array[added] = False
        for buffer in (*self._row_floats, *self._row_ints):
            buffer.array[added] = 0

    def upload(self) -> None:
        """Brings the staged samples to the device."""
        self._pack.upload(self._max_samples)

    def mask(self, masks: TokenMasks) -> None:
        """Waits for the masks of a step and brings them to the device, for parts that are ``masked``."""
        slots = list(masks.slots)
        if self._mask_rows:
            rows = {slot: iter(self._mask_rows.get(slot, (slot,))) for slot in slots}
            slots = [next(rows[slot]) for slot in slots]
        self._params.token_mask.write(slots, masks.wait().view(np.int32))

    def launch(self, logits_LV: Tensor, count: int, parts: SampleParts) -> None:
        """Draws the first ``count`` staged samples on the device and notes their tokens; does not wait for them.

        Args:
            logits_LV: [L, V] fp32, each row's wanted positions one after the other, in the order of the rows.
            parts: optional parts of the sampling, at least those that the rows use.
        """
        params = self._sample_params(count, parts)
        sample(logits_LV, params, self._tokens[:count], self._failed[:count])
        counts = self._params.output_counts.require() if parts.penalties else None
        record_tokens(self._tokens[:count], params.slots, self._last_tokens, counts)

    def finish(self, logits_LV: Tensor, staged: StagedSamples) -> PendingSample:
        """Starts computing the log-probabilities that were asked for, and fetching the samples.

        ``logits_LV`` may be overwritten once this returns.
        """
        prompt_reports, prompt_rows = None, list[int]()
        if any(row.logprob_targets for row in staged.rows):
            prompt_reports, prompt_rows = self._report_prompts(logits_LV, staged.rows, staged.ends)
        return PendingSample(
            num_rows=len(staged.rows),
            sampled_rows=staged.sampled,
            results=self._fetch_results(),
            drafts=staged.drafts,
            reports=self._report_samples(logits_LV, staged) if staged.reported else None,
            reported=staged.reported,
            prompt_reports=prompt_reports,
            prompt_rows=prompt_rows,
        )

    def _sample_params(self, count: int, parts: SampleParts) -> SampleParams:
        seeds, sample_indices, top_k = (buffer.view(count) for buffer in self._row_ints)
        floats, tables = [buffer.view(count) for buffer in self._row_floats], self._params
        return SampleParams(
            rows=self._logit_rows.view(count),
            slots=self._slots.view(count),
            temperature=floats[FloatParam.TEMPERATURE],
            seeds=seeds,
            positions=self._positions.view(count),
            sample_indices=sample_indices,
            top_k=top_k if parts.top_k else None,
            top_p=floats[FloatParam.TOP_P] if parts.top_p else None,
            min_p=floats[FloatParam.MIN_P] if parts.min_p else None,
            penalties=self._penalties(floats) if parts.penalties else None,
            min_tokens=MinTokens(self._active.view(count), tables.stop_mask.require()) if parts.min_tokens else None,
            logit_bias=tables.logit_bias.require() if parts.logit_bias else None,
            token_mask=tables.token_mask.require() if parts.token_mask else None,
            workspace=self._workspace,
        )

    def _penalties(self, floats: list[Tensor]) -> Penalties:
        return Penalties(
            repetition=floats[FloatParam.REPETITION],
            presence=floats[FloatParam.PRESENCE],
            frequency=floats[FloatParam.FREQUENCY],
            prompt_mask=self._params.prompt_mask.require(),
            output_counts=self._params.output_counts.require(),
        )

    @torch.inference_mode()
    def _report_samples(self, logits_LV: Tensor, staged: StagedSamples) -> Reports:
        """Log-probabilities of the sampled tokens that want them, of those that are in vain too."""
        wanted_R = self._ids(staged.reported)
        chosen = self._tokens.index_select(0, wanted_R)
        logit_rows = self._logit_rows.whole.index_select(0, wanted_R)
        num_top = self._ints[IntParam.LOGPROBS, staged.slots[staged.reported]].tolist()
        return Reports(logits_LV, logit_rows, chosen, num_top, self._returns)

    @torch.inference_mode()
    def _report_prompts(
        self, logits_LV: Tensor, rows: Sequence[ScheduledRow], ends: NDArray[np.int64]
    ) -> tuple[Reports, list[int]]:
        """Log-probabilities of prompt tokens, and the row of each."""
        targets: list[int] = []
        logit_rows: list[int] = []
        num_top: list[int] = []
        owners: list[int] = []
        for index, row in enumerate(rows):
            count = len(row.logprob_targets)
            first = int(ends[index]) - (row.num_tokens - row.logits_start)
            targets += row.logprob_targets
            logit_rows += range(first, first + count)
            num_top += [max(0, int(self._ints[IntParam.PROMPT_LOGPROBS, row.slot]))] * count
            owners += [index] * count
        return Reports(logits_LV, self._ids(logit_rows), self._ids(targets), num_top, self._returns), owners


def _is_decode(row: ScheduledRow) -> bool:
    """Whether a row has one token, one row of logits and one sample."""
    return row.num_tokens == row.num_samples == 1 and row.logits_start == 0 and not row.logprob_targets


def _parts(floats: NDArray[np.float32], ints: NDArray[np.int64], active: NDArray[np.bool_]) -> SampleParts:
    """The optional parts that the samples' parameters, [parameter, R], ask for."""
    return SampleParts(
        top_k=bool(ints[IntParam.TOP_K].any()),
        top_p=bool((floats[FloatParam.TOP_P] < 1).any()),
        min_p=bool(floats[FloatParam.MIN_P].any()),
        penalties=_penalized(floats),
        min_tokens=bool(active.any()),
        logit_bias=bool(ints[IntParam.BIASED].any()),
    )


def _penalized(floats: NDArray[np.float32]) -> bool:
    """Whether any of the parameters, [parameter, …], are penalties that change something."""
    return bool((floats[FloatParam.REPETITION] != 1).any() or floats[[FloatParam.PRESENCE, FloatParam.FREQUENCY]].any())


def _drafts(rows: Sequence[ScheduledRow]) -> dict[int, list[int]]:
    """See :attr:`StagedSamples.drafts`."""
    return {
        index: row.token_ids[1 - row.num_samples :]
        for index, row in enumerate(rows)
        if row.num_samples > 1 and row.token_ids is not None
    }
