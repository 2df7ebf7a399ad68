"""Each slot's sampling state, and the sampling of a step's logits.

Shape suffixes: L rows of logits, R sampled rows, S slots, V vocabulary.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.contract.step import ScheduledRow, SlotInit
from app.kernels.sample import MinTokens, Penalties, SampleParams, record_tokens, sample
from app.kernels.sample.workspace import SampleWorkspace
from app.runner.errors import RunnerError
from app.runner.pending_sample import RESULT_BYTES, PendingSample, Reports
from app.runner.staging import Returns, StagedPack, to_device

_UNSIGNED_64 = (1 << 64) - 1


class _Float(enum.IntEnum):
    """Rows of the slots' floating parameters."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    REPETITION = 3
    PRESENCE = 4
    FREQUENCY = 5


class _Int(enum.IntEnum):
    """Rows of the slots' integer parameters."""

    SEED = 0
    SAMPLE_INDEX = 1
    TOP_K = 2
    MIN_LEN = 3
    """Tokens, prompt included, below which a stop token is masked."""
    BIASED = 4
    LOGPROBS = 5
    """-1 for none."""
    PROMPT_LOGPROBS = 6


_NUM_ROW_INTS = 3
"""The kernels read the first ones: seed, sample index and top_k."""


class _VocabTable:
    """A vocabulary-wide row per slot, allocated when the first slot needs one."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        self._table: Tensor | None = None
        self._dirty: set[int] = set()

    @property
    def pending_bytes(self) -> int:
        """That it will take once it is asked for."""
        return 0 if self._table is not None else self._shape[0] * self._shape[1] * self._dtype.itemsize

    def require(self) -> Tensor:
        """[S, V], zeros when new; on a CPU they take memory as they are written."""
        if self._table is None:
            # First asked for while a step is recorded, in inference mode; slots are bound outside of it.
            with torch.inference_mode(mode=False):
                self._table = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        return self._table

    def row(self, slot: int) -> Tensor:
        """A slot's row, to be written to."""
        self._dirty.add(slot)
        return self.require()[slot]

    def touch(self, slots: Iterable[int]) -> None:
        """Notes that a kernel writes to these slots' rows."""
        self._dirty.update(slots)

    def clear(self, slot: int) -> None:
        """Zeroes a slot's row, if anything was written to it."""
        if slot in self._dirty and self._table is not None:
            self._table[slot].zero_()
            self._dirty.discard(slot)


@dataclass(frozen=True, slots=True)
class SampleParts:
    """Which optional parts of the sampling a step has."""

    top_k: bool
    top_p: bool
    min_p: bool
    penalties: bool
    min_tokens: bool
    logit_bias: bool

    def recordable(self) -> SampleParts:
        """A superset with few variants: what the kernel skips row by row at no cost is always there."""
        return replace(self, top_k=True, top_p=True, min_p=True, min_tokens=True)


@dataclass(frozen=True, slots=True)
class StagedSamples:
    """A step's samples, their parameters staged in the sampler's buffers."""

    rows: Sequence[ScheduledRow]
    slots: NDArray[np.int64]
    """[sampled rows]"""
    ends: NDArray[np.int64]
    """[rows of the step]: end of each row's logits."""
    sampled: list[int]
    """Which rows sample."""
    parts: SampleParts
    recordable: SampleParts
    """``parts.recordable()``."""
    reported: list[int]
    """Which of the samples want log-probabilities."""
    masked_below: int
    """No sample at this position or above has tokens masked by ``min_tokens``."""


class Sampler:
    """Samples the rows of a step, by the parameters bound to their slots.

    A request's tokens hang on its logits, parameters, seed and positions alone: not on its slot, its neighbours, or
    whether it was preempted on the way.
    """

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        device: torch.device,
        *,
        workspace: SampleWorkspace | None = None,
        padded: bool = False,
    ) -> None:
        """
        Args:
            workspace: of :meth:`app.kernels.backend.Backend.sample_workspace`.
            padded: there is one slot more, the last, of rows that pad a step.
        """
        self._workspace = workspace
        self._num_slots = num_slots
        self.last_token = torch.zeros(num_slots + padded, dtype=torch.int64, device=device)
        """[S]: the token that each slot sampled last, ``padded`` ones included."""
        self._device = device
        self._vocab_size = vocab_size
        self._floats = np.zeros((len(_Float), num_slots), dtype=np.float32)
        self._ints = np.zeros((len(_Int), num_slots), dtype=np.int64)
        # Of the step's sampled rows, at addresses that stay.
        dtypes = (*(torch.int64,) * (3 + _NUM_ROW_INTS), *(torch.float32,) * len(_Float), torch.bool)
        self._pack = StagedPack([(num_slots, dtype) for dtype in dtypes], device)
        self._logit_rows, self._slots, self._positions, *others = self._pack.buffers
        self._row_ints, self._row_floats = others[:_NUM_ROW_INTS], others[_NUM_ROW_INTS:-1]
        self._active = others[-1]
        # One piece of memory, as the host gets them by one copy.
        self._results = torch.zeros(num_slots * RESULT_BYTES, dtype=torch.uint8, device=device)
        self._tokens = self._results[: num_slots * torch.int64.itemsize].view(torch.int64)
        self._failed = self._results[num_slots * torch.int64.itemsize :].view(torch.bool)
        self._returns = Returns(device)
        self._decoding: tuple[list[int], StagedSamples] | None = None
        """Slots and samples of the step before if each row had one sample, and none was bound since."""
        shape = (self.last_token.numel(), vocab_size)
        self._prompt_mask = _VocabTable(shape, torch.bool, device)
        self._output_counts = _VocabTable(shape, torch.int32, device)
        self._stop_mask = _VocabTable(shape, torch.bool, device)
        self._logit_bias = _VocabTable(shape, torch.float32, device)

    @property
    def on_demand_bytes(self) -> int:
        """Of the vocabulary-wide tables that no request has asked for yet, by penalties, biases and the like."""
        tables = (self._prompt_mask, self._output_counts, self._stop_mask, self._logit_bias)
        return sum(table.pending_bytes for table in tables)

    @property
    def max_samples(self) -> int:
        """Of one step."""
        return self._num_slots

    def last_tokens(self) -> list[int]:
        """By slot: the token that it sampled last, once the device is through with the steps under way."""
        tokens: list[int] = self.last_token[: self._num_slots].tolist()
        return tokens

    def bind(self, slots: Sequence[SlotInit]) -> None:
        """Binds slots to new or resumed requests; whatever they held before is gone."""
        if slots:
            self._decoding = None
        for init in slots:
            self._bind(init)

    def _bind(self, init: SlotInit) -> None:
        slot, params = init.slot, init.sampling
        floats, ints = self._floats[:, slot], self._ints[:, slot]
        floats[_Float.TEMPERATURE] = params.temperature
        floats[_Float.TOP_P] = params.top_p
        floats[_Float.MIN_P] = params.min_p
        floats[_Float.REPETITION] = params.repetition_penalty
        floats[_Float.PRESENCE] = params.presence_penalty
        floats[_Float.FREQUENCY] = params.frequency_penalty
        ints[_Int.SEED] = np.uint64(init.seed & _UNSIGNED_64).astype(np.int64)
        ints[_Int.SAMPLE_INDEX] = init.sample_index
        ints[_Int.TOP_K] = min(params.top_k, self._vocab_size)
        ints[_Int.MIN_LEN] = init.prompt_len + params.min_tokens if params.min_tokens and init.stop_token_ids else 0
        ints[_Int.BIASED] = bool(params.logit_bias)
        ints[_Int.LOGPROBS] = -1 if params.logprobs is None else params.logprobs
        ints[_Int.PROMPT_LOGPROBS] = -1 if params.prompt_logprobs is None else params.prompt_logprobs
        self._bind_tables(init)

    def _bind_tables(self, init: SlotInit) -> None:
        slot, params = init.slot, init.sampling
        for table in (self._prompt_mask, self._output_counts, self._stop_mask, self._logit_bias):
            table.clear(slot)
        if params.min_tokens and init.stop_token_ids:
            self._stop_mask.row(slot).index_fill_(0, self._ids(init.stop_token_ids), value=True)
        if params.logit_bias:
            values = to_device(np.array(list(params.logit_bias.values()), dtype=np.float32), self._device)
            self._logit_bias.row(slot).index_copy_(0, self._ids(list(params.logit_bias)), values)
        if params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            self._prompt_mask.row(slot).index_fill_(0, self._ids(init.prompt_token_ids), value=True)
            output = self._ids(init.output_token_ids)
            self._output_counts.row(slot).index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def _ids(self, token_ids: list[int]) -> Tensor:
        return to_device(np.array(token_ids, dtype=np.int64), self._device)

    def sample(self, logits_LV: Tensor, rows: Sequence[ScheduledRow]) -> PendingSample:
        """:meth:`stage`, :meth:`launch` and :meth:`finish` in one."""
        staged = self.stage(rows)
        if staged.sampled:
            self.upload()
            self.launch(logits_LV, len(staged.sampled), staged.parts)
        return self.finish(logits_LV, staged)

    def stage(self, rows: Sequence[ScheduledRow]) -> StagedSamples:
        """Fills the buffers with the parameters of a step's samples.

        Args:
            rows: the step's rows; each wants logits of its positions ``logits_start`` to ``num_tokens``.

        Raises:
            RunnerError: a row asks for more than one sample, or its logprob targets do not match its positions.
        """
        slots = [row.slot for row in rows]
        positions = [row.start + row.num_tokens for row in rows if row.num_samples]
        decodes = all(_is_decode(row) for row in rows)
        if decodes and self._decoding is not None and slots == self._decoding[0]:
            staged = self._decoding[1]
            if min(positions) >= staged.masked_below:
                self._positions.array[: len(slots)] = positions
                return staged  # all else is as it was
        for row in rows:
            _check_row(row)
        staged = self._stage(rows, np.array(slots, dtype=np.int64), np.array(positions, dtype=np.int64))
        self._decoding = (slots, staged) if decodes and not staged.parts.min_tokens else None
        return staged

    def _stage(
        self, rows: Sequence[ScheduledRow], slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> StagedSamples:
        ends = np.cumsum([row.num_tokens - row.logits_start for row in rows])
        sampled = [index for index, row in enumerate(rows) if row.num_samples]
        count = len(sampled)
        own = slots[sampled]
        floats, ints = np.take(self._floats, own, axis=1), np.take(self._ints, own, axis=1)
        self._logit_rows.array[:count] = ends[sampled] - 1
        self._slots.array[:count] = own
        self._positions.array[:count] = positions
        active = positions < ints[_Int.MIN_LEN]
        self._active.array[:count] = active
        for buffer, values in zip(self._row_floats, floats, strict=True):
            buffer.array[:count] = values
        for buffer, values in zip(self._row_ints, ints, strict=False):
            buffer.array[:count] = values
        parts = _parts(floats, ints, active)
        if parts.penalties:
            self._output_counts.touch(own.tolist())
        return StagedSamples(
            rows=rows,
            slots=own,
            ends=ends,
            sampled=sampled,
            parts=parts,
            recordable=parts.recordable(),
            reported=np.flatnonzero(ints[_Int.LOGPROBS] >= 0).tolist(),
            masked_below=int(ints[_Int.MIN_LEN].max(initial=0)),
        )

    def pad(self, count: int, to: int) -> None:
        """Fills up the staged rows with greedy ones whose tokens nobody reads; on a GPU."""
        added = slice(count, to)
        self._logit_rows.array[added] = np.arange(count, to)
        self._slots.array[added] = self._num_slots
        self._positions.array[added] = 0
        self._active.array[added] = False
        for buffer in (*self._row_floats, *self._row_ints):
            buffer.array[added] = 0

    def upload(self) -> None:
        """Brings the staged rows to the device."""
        self._pack.upload(self._num_slots)

    def launch(self, logits_LV: Tensor, count: int, parts: SampleParts) -> None:
        """Samples the first ``count`` rows on the device and notes their tokens; does not wait for it.

        Args:
            logits_LV: [L, V] fp32, each row's wanted positions one after the other, in the order of the rows.
        """
        params = self._params(count, parts)
        sample(logits_LV, params, self._tokens[:count], self._failed[:count])
        counts = self._output_counts.require() if parts.penalties else None
        record_tokens(self._tokens[:count], params.slots, self.last_token, counts)

    def finish(self, logits_LV: Tensor, staged: StagedSamples) -> PendingSample:
        """Starts the log-probabilities that were asked for. ``logits_LV`` may be overwritten once this returns."""
        prompt_reports, prompt_rows = None, list[int]()
        if any(row.logprob_targets for row in staged.rows):
            prompt_reports, prompt_rows = self._report_prompts(logits_LV, staged.rows, staged.ends)
        return PendingSample(
            num_rows=len(staged.rows),
            sampled_rows=staged.sampled,
            results=self._returns.snapshot(self._results),
            reports=self._report_samples(logits_LV, staged) if staged.reported else None,
            reported_rows=[staged.sampled[index] for index in staged.reported],
            prompt_reports=prompt_reports,
            prompt_rows=prompt_rows,
        )

    def _params(self, count: int, parts: SampleParts) -> SampleParams:
        seeds, sample_indices, top_k = (buffer.view(count) for buffer in self._row_ints)
        floats = [buffer.view(count) for buffer in self._row_floats]
        return SampleParams(
            rows=self._logit_rows.view(count),
            slots=self._slots.view(count),
            temperature=floats[_Float.TEMPERATURE],
            seeds=seeds,
            positions=self._positions.view(count),
            sample_indices=sample_indices,
            top_k=top_k if parts.top_k else None,
            top_p=floats[_Float.TOP_P] if parts.top_p else None,
            min_p=floats[_Float.MIN_P] if parts.min_p else None,
            penalties=self._penalties(floats) if parts.penalties else None,
            min_tokens=MinTokens(self._active.view(count), self._stop_mask.require()) if parts.min_tokens else None,
            logit_bias=self._logit_bias.require() if parts.logit_bias else None,
            workspace=self._workspace,
        )

    def _penalties(self, floats: list[Tensor]) -> Penalties:
        return Penalties(
            repetition=floats[_Float.REPETITION],
            presence=floats[_Float.PRESENCE],
            frequency=floats[_Float.FREQUENCY],
            prompt_mask=self._prompt_mask.require(),
            output_counts=self._output_counts.require(),
        )

    @torch.inference_mode()
    def _report_samples(self, logits_LV: Tensor, staged: StagedSamples) -> Reports:
        """Log-probabilities of the sampled tokens that want them."""
        wanted_R = self._ids(staged.reported)
        chosen = self._tokens.index_select(0, wanted_R)
        logit_rows = self._logit_rows.whole.index_select(0, wanted_R)
        num_top = self._ints[_Int.LOGPROBS, staged.slots[staged.reported]].tolist()
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
            num_top += [max(0, int(self._ints[_Int.PROMPT_LOGPROBS, row.slot]))] * count
            owners += [index] * count
        return Reports(logits_LV, self._ids(logit_rows), self._ids(targets), num_top, self._returns), owners


def _is_decode(row: ScheduledRow) -> bool:
    """One token, one row of logits, one sample."""
    return row.num_tokens == row.num_samples == 1 and row.logits_start == 0 and not row.logprob_targets


def _parts(floats: NDArray[np.float32], ints: NDArray[np.int64], active: NDArray[np.bool_]) -> SampleParts:
    """What the sampled rows' parameters, [parameter, R], ask for."""
    penalized = (floats[_Float.REPETITION] != 1) | floats[[_Float.PRESENCE, _Float.FREQUENCY]].any(axis=0)
    return SampleParts(
        top_k=bool(ints[_Int.TOP_K].any()),
        top_p=bool((floats[_Float.TOP_P] < 1).any()),
        min_p=bool(floats[_Float.MIN_P].any()),
        penalties=bool(penalized.any()),
        min_tokens=bool(active.any()),
        logit_bias=bool(ints[_Int.BIASED].any()),
    )


def _check_row(row: ScheduledRow) -> None:
    if row.num_samples > 1:
        raise RunnerError(f"slot {row.slot} wants {row.num_samples} samples of one row: drafts are not supported")
    unsampled = row.num_tokens - row.logits_start - row.num_samples
    if unsampled != len(row.logprob_targets):
        raise RunnerError(f"slot {row.slot} has {unsampled} positions for {len(row.logprob_targets)} logprob targets")
