"""A step's rows as the tensors that the kernels read.

All buffers are allocated once; a step writes into numpy views of them, whole batches at a time.
T tokens of a step, R rows (sequences) of a step, L rows of logits, S slots, B block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.kernels.types import AttentionMetadata
from app.runner.errors import RunnerError
from app.runner.staging import StagedBuffer
from app.types import ScheduledRow, SchedulerOutput

_BEYOND_BLOCKS = "a row's tokens reach beyond the blocks of its slot"


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one step feeds the model: views of the batch's buffers, valid until the next step is prepared."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    logit_indices: Tensor
    """[L] int64: tokens whose logits are wanted, row by row."""
    meta: AttentionMetadata


class StepExtent(NamedTuple):
    """The largest of a step's rows."""

    max_query_len: int
    max_seq_len: int


class BlockTables:
    """Blocks of every slot's sequence: an array [S, max_blocks], and the same as lists, quicker to read singly."""

    def __init__(self, num_slots: int, max_blocks: int, block_size: int) -> None:
        self.array = np.zeros((num_slots, max_blocks), dtype=np.int32)
        self.lists: list[list[int]] = [[] for _ in range(num_slots)]
        self._block_size = block_size

    def capacities(self, slots: NDArray[np.int_]) -> NDArray[np.int_]:
        """Tokens that the blocks of each of these slots hold."""
        return np.array([len(self.lists[slot]) for slot in slots]) * self._block_size

    def clear(self, slot: int) -> None:
        """Empties a slot's table."""
        self.lists[slot].clear()

    def append(self, slot: int, block_ids: list[int]) -> None:
        """Adds blocks at the end of a slot's table.

        Raises:
            RunnerError: more blocks than the longest sequence has.
        """
        table = self.lists[slot]
        start, end = len(table), len(table) + len(block_ids)
        if end > self.array.shape[1]:
            raise RunnerError(f"slot {slot} was given {end} blocks, its table holds {self.array.shape[1]}")
        table += block_ids
        self.array[slot, start:end] = block_ids


class InputBatch:
    """Persistent step buffers and the slots' block tables."""

    def __init__(
        self,
        *,
        num_slots: int,
        max_tokens: int,
        max_logit_rows: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        split_workspace: Tensor | None = None,
        trash_block: int = 0,
    ) -> None:
        """
        Args:
            trash_block: that rows which only pad a step write to.
        """
        self._split_workspace = split_workspace
        self._trash_block = trash_block
        max_blocks = -(-max_model_len // block_size)
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._max_tokens = max_tokens
        self._max_logit_rows = max_logit_rows
        self._tables = BlockTables(num_slots, max_blocks, block_size)
        self._arange = np.arange(max_tokens + 1)
        self._token_ids = StagedBuffer((max_tokens,), torch.int64, device)
        self._positions = StagedBuffer((max_tokens,), torch.int64, device)
        self._slot_mapping = StagedBuffer((max_tokens,), torch.int64, device)
        self._logit_indices = StagedBuffer((max_logit_rows,), torch.int64, device)
        self._query_start_loc = StagedBuffer((num_slots + 1,), torch.int32, device)
        self._seq_lens = StagedBuffer((num_slots,), torch.int32, device)
        self._block_tables = StagedBuffer((num_slots, max_blocks), torch.int32, device)
        self._carried_tokens = StagedBuffer((num_slots,), torch.int64, device)
        self._carried_slots = StagedBuffer((num_slots,), torch.int64, device)
        self._num_carried = 0
        self._decoding: list[int] = []
        """Slots of the step before if it was a decode alone."""
        self._decoding_width = 0
        """Blocks of each row that the kernels' tables hold."""

    def prepare(self, step: SchedulerOutput, last_token_S: Tensor) -> StepInputs:
        """:meth:`fill`, :meth:`upload` and :meth:`views` of the step as it is.

        Raises:
            RunnerError: as :meth:`fill`.
        """
        extent = self.fill(step, last_token_S)
        self.upload(step.num_tokens, len(step.rows), step.num_logit_rows, last_token_S)
        return self.views(step.num_tokens, len(step.rows), step.num_logit_rows, extent)

    def upload(self, tokens: int, rows: int, logits: int, last_token_S: Tensor) -> None:
        """Brings so much of the filled buffers to the device."""
        token_ids = self._token_ids.upload(tokens)
        if self._num_carried:
            # On a device that is not the host only the device knows them.
            carried = last_token_S.index_select(0, self._carried_slots.upload(self._num_carried))
            token_ids.index_copy_(0, self._carried_tokens.upload(self._num_carried), carried)
        self._positions.upload(tokens)
        self._slot_mapping.upload(tokens)
        self._logit_indices.upload(logits)
        self._query_start_loc.upload(rows + 1)
        self._seq_lens.upload(rows)
        self._block_tables.upload(rows)

    def views(self, tokens: int, rows: int, logits: int, extent: StepExtent) -> StepInputs:
        """So much of the buffers on the device; their addresses are the same in every step."""
        meta = AttentionMetadata(
            query_start_loc=self._query_start_loc.view(rows + 1),
            seq_lens=self._seq_lens.view(rows),
            block_tables=self._block_tables.view(rows),
            slot_mapping=self._slot_mapping.view(tokens),
            max_query_len=extent.max_query_len,
            max_seq_len=extent.max_seq_len,
            split_workspace=self._split_workspace,
        )
        return StepInputs(
            self._token_ids.view(tokens), self._positions.view(tokens), self._logit_indices.view(logits), meta
        )

    def pad(self, rows: int, to: int) -> None:
        """Fills up a step of decodes with rows whose token is the first of a sequence in the trash block."""
        added = slice(rows, to)
        self._token_ids.array[added] = 0
        self._positions.array[added] = 0
        self._slot_mapping.array[added] = self._trash_block * self._block_size
        self._logit_indices.array[added] = self._arange[added]
        self._query_start_loc.array[rows + 1 : to + 1] = self._arange[rows + 1 : to + 1]
        self._seq_lens.array[added] = 1
        self._block_tables.array[added, 0] = self._trash_block

    def fill(self, step: SchedulerOutput, last_token_S: Tensor) -> StepExtent:
        """Binds the step's slots, appends its blocks and fills the buffers: on a CPU, all that a replay reads.

        Args:
            last_token_S: [S] int64, the token that each slot sampled last: the input of rows without host tokens.

        Raises:
            RunnerError: the step is larger than the buffers, or a row's blocks than its table.
        """
        self._check_size(step)
        rows = step.rows
        for init in step.slots:
            self._tables.clear(init.slot)
        moved = bool(step.slots)
        for row in rows:
            if row.new_block_ids and row.new_block_ids[0]:
                self._tables.append(row.slot, row.new_block_ids[0])
                moved = True
        if step.num_tokens == len(rows) == step.num_logit_rows:
            return self._fill_decode(rows, last_token_S, moved=moved)
        self._decoding = []
        slots = np.array([row.slot for row in rows])
        starts = np.array([row.start for row in rows])
        counts = np.array([row.num_tokens for row in rows])
        ends = np.cumsum(counts)
        extent = self._fill_metadata(slots, starts, counts, ends)
        self._fill_token_ids(rows, (ends - counts).tolist(), last_token_S)
        self._fill_logit_indices(rows, ends, counts)
        return extent

    def _fill_decode(self, rows: list[ScheduledRow], last_token_S: Tensor, *, moved: bool) -> StepExtent:
        """A step of one token and one row of logits a row, which is nearly every step: as few calls as can be.

        What depends on the rows' slots alone is kept from the step before when they are the same.

        Args:
            moved: block tables have changed since then.
        """
        num_rows, size = len(rows), self._block_size
        slots, starts = [row.slot for row in rows], [row.start for row in rows]
        same = slots == self._decoding
        longest = max(starts) + 1
        if longest > self._max_model_len:
            raise RunnerError(_too_long(longest, self._max_model_len))
        tables = self._tables.lists
        try:
            mapping = [
                tables[slot][start // size] * size + start % size for slot, start in zip(slots, starts, strict=True)
            ]
        except IndexError:
            raise RunnerError(_BEYOND_BLOCKS) from None
        self._positions.array[:num_rows] = starts
        self._seq_lens.array[:num_rows] = [start + 1 for start in starts]
        self._slot_mapping.array[:num_rows] = mapping
        if not same:
            self._query_start_loc.array[: num_rows + 1] = self._arange[: num_rows + 1]
            self._logit_indices.array[:num_rows] = self._arange[:num_rows]
        width = -(-longest // size)
        if moved or not same or width > self._decoding_width:
            self._block_tables.array[:num_rows, :width] = self._tables.array[slots, :width]
            self._decoding_width = width
        self._fill_token_ids(rows, range(num_rows), last_token_S)
        self._decoding = slots
        return StepExtent(max_query_len=1, max_seq_len=longest)

    def whole(self) -> StepInputs:
        """The buffers at their full size: what a recording of a step reads, whatever the step's own size."""
        meta = AttentionMetadata(
            query_start_loc=self._query_start_loc.whole,
            seq_lens=self._seq_lens.whole,
            block_tables=self._block_tables.whole,
            slot_mapping=self._slot_mapping.whole,
            max_query_len=self._max_tokens,
            max_seq_len=self._max_model_len,
            split_workspace=self._split_workspace,
        )
        return StepInputs(self._token_ids.whole, self._positions.whole, self._logit_indices.whole, meta)

    def _check_size(self, step: SchedulerOutput) -> None:
        if not 0 < step.num_tokens <= self._max_tokens:
            raise RunnerError(f"a step of {step.num_tokens} tokens, the buffers hold 1 to {self._max_tokens}")
        if step.num_logit_rows > self._max_logit_rows:
            raise RunnerError(f"a step of {step.num_logit_rows} logit rows, the buffers hold {self._max_logit_rows}")
        if sum(row.num_tokens for row in step.rows) != step.num_tokens:
            raise RunnerError(f"a step of {step.num_tokens} tokens whose rows have another number of them")

    def _fill_metadata(
        self, slots: NDArray[np.int_], starts: NDArray[np.int_], counts: NDArray[np.int_], ends: NDArray[np.int_]
    ) -> StepExtent:
        num_rows, num_tokens = len(slots), int(ends[-1])
        seq_lens = starts + counts
        max_seq_len = int(seq_lens.max())
        if (seq_lens > self._tables.capacities(slots)).any():
            raise RunnerError(_BEYOND_BLOCKS)
        if max_seq_len > self._max_model_len:
            raise RunnerError(_too_long(max_seq_len, self._max_model_len))
        row_of_token = np.repeat(self._arange[:num_rows], counts)
        positions = self._arange[:num_tokens] + (starts - (ends - counts))[row_of_token]
        width = -(-max_seq_len // self._block_size)
        tables = self._tables.array[slots, :width]
        blocks = tables[row_of_token, positions // self._block_size].astype(np.int64)
        self._positions.array[:num_tokens] = positions
        self._slot_mapping.array[:num_tokens] = blocks * self._block_size + positions % self._block_size
        self._query_start_loc.array[0] = 0
        self._query_start_loc.array[1 : num_rows + 1] = ends
        self._seq_lens.array[:num_rows] = seq_lens
        self._block_tables.array[:num_rows, :width] = tables
        return StepExtent(max_query_len=int(counts.max()), max_seq_len=max_seq_len)

    def _fill_token_ids(self, rows: list[ScheduledRow], begins: Sequence[int], last_token_S: Tensor) -> None:
        """Token ids that the host knows; on a CPU, where it sees what was sampled last, all of them."""
        buffer = self._token_ids.array
        last = last_token_S.numpy() if last_token_S.device.type == "cpu" else None
        self._num_carried = 0
        for row, begin in zip(rows, begins, strict=True):
            if row.token_ids is not None:
                buffer[begin : begin + row.num_tokens] = row.token_ids
                continue
            if row.num_tokens != 1:
                raise RunnerError(f"slot {row.slot} carries one sampled token over, not {row.num_tokens}")
            if last is not None:
                buffer[begin] = last[row.slot]
                continue
            self._carried_tokens.array[self._num_carried] = begin
            self._carried_slots.array[self._num_carried] = row.slot
            self._num_carried += 1

    def _fill_logit_indices(self, rows: list[ScheduledRow], ends: NDArray[np.int_], counts: NDArray[np.int_]) -> None:
        wanted = counts - np.array([row.logits_start for row in rows])
        total = int(wanted.sum())
        # Each row's wanted tokens are its last ones: ends - wanted .. ends.
        offsets = np.cumsum(wanted) - wanted
        self._logit_indices.array[:total] = np.repeat(ends - wanted - offsets, wanted) + np.arange(total)


def _too_long(length: int, longest: int) -> str:
    return f"a sequence of {length} tokens, the longest may have {longest}"
