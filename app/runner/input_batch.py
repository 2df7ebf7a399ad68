"""A step's rows as the tensors that the kernels read.

The host sends what is new of each row (:class:`~app.kernels.types.StepRows`); ``expand_rows``, the first kernel of a
step, makes of it what attention and embedding read. All buffers are allocated once.
T tokens of a step, R rows (sequences) of a step, L rows of logits, S slots, W blocks of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.contract.info import KVCacheGroup
from app.contract.step import ScheduledRow, StepPlan
from app.kernels.expand_rows import expand_rows
from app.kernels.types import AttentionMetadata, StepRows, StepTokens
from app.runner.block_tables import BlockTables
from app.runner.errors import RunnerError
from app.runner.execution.buckets import Bucket
from app.runner.row_adapters import RowAdapters
from app.runner.staging import StagedPack


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Inputs of the model for one step: views of the batch's buffers, valid until the next step is filled in."""

    rows: tuple[StepRows, ...]
    """The step's rows for each KV cache group; they differ only in their blocks."""
    tokens: StepTokens
    metas: tuple[AttentionMetadata, ...]
    """The step's attention metadata for each KV cache group; they differ only in their blocks."""


class StepExtent(NamedTuple):
    """Bounds on a step's rows."""

    max_query_len: int
    """Tokens of the largest row."""
    max_seq_len: int
    """Tokens of the longest sequence, this step's included."""


class InputBatch:
    """Persistent step buffers and the slots' block tables."""

    def __init__(
        self,
        groups: Sequence[KVCacheGroup],
        *,
        num_slots: int,
        max_tokens: int,
        max_logit_rows: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        split_workspace: Tensor | None = None,
        trash: bool = False,
        adapters: bool = False,
    ) -> None:
        """
        Args:
            groups: groups of the KV cache.
            max_tokens: tokens of a step.
            max_model_len: tokens of the longest sequence.
            split_workspace: what :meth:`app.kernels.backend.Backend.split_workspace` made.
            trash: each group has one block more, the last, which rows that only pad a step write to.
            adapters: rows may have adapters.
        """
        self._split_workspace = split_workspace
        self._num_slots = num_slots
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._max_tokens = max_tokens
        self._max_logit_rows = max_logit_rows
        max_blocks = -(-max_model_len // block_size)
        lengths = [*(num_slots,) * 3, *(num_slots + 1,) * 2, *(num_slots, num_slots + 1) * len(groups)]
        lengths += [max_tokens] * 2 if adapters else []
        lengths.append(max_tokens + num_slots * max_blocks * len(groups))
        self._pack = StagedPack([(length, torch.int32) for length in lengths], device)
        self._slots, self._carried, self._seq_lens, self._logit_start_loc, self._query_start_loc, *buffers = (
            self._pack.buffers
        )
        *buffers, self._feed = buffers
        self._adapters = RowAdapters(buffers.pop(), buffers.pop(), num_slots) if adapters else None
        of_groups = buffers
        self._groups = [
            BlockTables(
                index,
                num_slots=num_slots,
                max_tokens=max_tokens,
                max_blocks=max_blocks,
                device=device,
                trash_block=group.num_blocks if trash else None,
                table_lens=of_groups[2 * index],
                new_block_loc=of_groups[2 * index + 1],
            )
            for index, group in enumerate(groups)
        ]
        self._feed_end = 0
        self._arange = np.arange(num_slots + 1)
        self._token_ids, self._positions = (torch.zeros(max_tokens, dtype=torch.int64, device=device) for _ in range(2))
        self._logit_indices = torch.zeros(max_logit_rows, dtype=torch.int64, device=device)
        self._decoding: list[int] = []
        """Slots of the step before, if each of its rows was a decode; empty otherwise."""

    def prepare(self, step: StepPlan) -> StepInputs:
        """:meth:`fill`, :meth:`upload` and :meth:`views` of a step that is not padded.

        Raises:
            RunnerError: the step does not fit, see :meth:`fill`.
        """
        extent = self.fill(step)
        self.upload()
        return self.views(step.num_tokens, len(step.rows), step.num_logit_rows, extent)

    @property
    def token_adapters(self) -> tuple[Tensor, Tensor] | None:
        """[max_tokens] int32 each: the slot of the adapter of each token of a step, -1 for none, and the tokens sorted
        by it; None without adapters."""
        return None if self._adapters is None else (self._adapters.of_tokens.whole, self._adapters.order.whole)

    def upload(self) -> None:
        """Copies what was filled in to the device."""
        self._pack.upload(self._feed_end)

    def views(self, tokens: int, rows: int, logits: int, extent: StepExtent) -> StepInputs:
        """Views of the first tokens, rows and rows of logits of the buffers on the device.

        Their addresses are the same in every step.
        """
        return StepInputs(
            tuple(self._rows_of(group, rows) for group in self._groups),
            StepTokens(
                token_ids=self._token_ids[:tokens],
                positions=self._positions[:tokens],
                logit_indices=self._logit_indices[:logits],
            ),
            tuple(self._meta_of(group, tokens, rows, extent) for group in self._groups),
        )

    def _rows_of(self, group: BlockTables, rows: int) -> StepRows:
        return StepRows(
            slots=self._slots.view(rows),
            carried=self._carried.view(rows),
            table_lens=group.table_lens.view(rows),
            new_block_loc=group.new_block_loc.view(rows + 1),
            logit_start_loc=self._logit_start_loc.view(rows + 1),
            feed=self._feed.whole,
        )

    def _meta_of(self, group: BlockTables, tokens: int, rows: int, extent: StepExtent) -> AttentionMetadata:
        return AttentionMetadata(
            query_start_loc=self._query_start_loc.view(rows + 1),
            seq_lens=self._seq_lens.view(rows),
            block_tables=group.block_tables_RW[:rows],
            slot_mapping=group.slot_mapping_T[:tokens],
            max_query_len=extent.max_query_len,
            max_seq_len=extent.max_seq_len,
            split_workspace=self._split_workspace,
        )

    def whole(self) -> StepInputs:
        """The buffers at their full size: what a recording of a step reads, whatever the step's own size."""
        extent = StepExtent(max_query_len=self._max_tokens, max_seq_len=self._max_model_len)
        return self.views(self._max_tokens, self._num_slots, self._max_logit_rows, extent)

    def expand(self, inputs: StepInputs, last_token_S: Tensor) -> None:
        """The first kernels of a step, one for each KV cache group.

        Args:
            last_token_S: [S] int64, the token that each slot sampled last; on a GPU one more, for rows that pad.
        """
        tokens: StepTokens | None = inputs.tokens
        for group, rows, meta in zip(self._groups, inputs.rows, inputs.metas, strict=True):
            expand_rows(rows, group.tables_SW, last_token_S, tokens, meta, block_size=self._block_size)
            tokens = None  # filled

    def tables(self) -> list[list[list[int]]]:
        """Entries of each slot's block table, by KV cache group and slot."""
        return [group.entries() for group in self._groups]

    def fill(self, step: StepPlan, bucket: Bucket | None = None) -> StepExtent:
        """Binds the step's slots, appends its blocks and fills the buffers: on a CPU, all that a replay reads.

        Args:
            bucket: the size that the step is padded to.

        Raises:
            RunnerError: the step is larger than the buffers, or a row's blocks than its table.
        """
        self._check_size(step)
        rows = step.rows
        for init in step.slots:
            for group in self._groups:
                group.num_entries[init.slot] = 0
        end = bucket.tokens if bucket else step.num_tokens
        for group in self._groups:
            end = group.append(rows, self._feed.array, end)
        self._feed_end = end
        extent = self._fill_decode(rows) if step.is_decode else self._fill_rows(rows, step.num_logit_rows)
        if bucket:
            self._pad(step, bucket)
        if self._adapters is not None:
            self._adapters.fill(step, bucket.tokens if bucket else step.num_tokens)
        return extent

    def _check_size(self, step: StepPlan) -> None:
        if not 0 < step.num_tokens <= self._max_tokens:
            raise RunnerError(f"a step of {step.num_tokens} tokens, the buffers hold 1 to {self._max_tokens}")
        if step.num_logit_rows > self._max_logit_rows:
            raise RunnerError(f"a step of {step.num_logit_rows} logit rows, the buffers hold {self._max_logit_rows}")
        if sum(row.num_tokens for row in step.rows) != step.num_tokens:
            raise RunnerError(f"a step of {step.num_tokens} tokens whose rows have another number of them")

    def _fill_decode(self, rows: list[ScheduledRow]) -> StepExtent:
        """Fills in a step of one token and one row of logits a row, as nearly every step is: in few calls."""
        count = len(rows)
        slots, lengths = [row.slot for row in rows], [row.start + 1 for row in rows]
        longest = self._check_lengths(slots, lengths)
        self._seq_lens.array[:count] = lengths
        carried = [row.token_ids is None for row in rows]
        self._carried.array[:count] = carried
        if not all(carried):
            for index, row in enumerate(rows):
                if row.token_ids is not None:
                    self._feed.array[index] = row.token_ids[0]
        if slots != self._decoding:
            self._slots.array[:count] = slots
            self._query_start_loc.array[: count + 1] = self._arange[: count + 1]
            self._logit_start_loc.array[: count + 1] = self._arange[: count + 1]
        self._decoding = slots
        return StepExtent(max_query_len=1, max_seq_len=longest)

    def _fill_rows(self, rows: list[ScheduledRow], num_logit_rows: int) -> StepExtent:
        self._decoding = []
        count = len(rows)
        slots, counts = [row.slot for row in rows], [row.num_tokens for row in rows]
        lengths = [row.start + row.num_tokens for row in rows]
        longest = self._check_lengths(slots, lengths)
        self._slots.array[:count] = slots
        self._seq_lens.array[:count] = lengths
        self._query_start_loc.array[0] = self._logit_start_loc.array[0] = 0
        np.cumsum(counts, out=self._query_start_loc.array[1 : count + 1])
        wanted = [row.num_tokens - row.logits_start for row in rows]
        if sum(wanted) != num_logit_rows:
            raise RunnerError(f"a step of {num_logit_rows} logit rows whose rows want {sum(wanted)}")
        np.cumsum(wanted, out=self._logit_start_loc.array[1 : count + 1])
        self._carried.array[:count] = [row.token_ids is None for row in rows]
        begin = 0
        for row in rows:
            if row.token_ids is not None:
                self._feed.array[begin : begin + row.num_tokens] = row.token_ids
            elif row.num_tokens != 1:
                raise RunnerError(f"slot {row.slot} carries one sampled token over, not {row.num_tokens}")
            begin += row.num_tokens
        return StepExtent(max_query_len=max(counts), max_seq_len=longest)

    def _check_lengths(self, slots: Sequence[int], lengths: Sequence[int]) -> int:
        """The largest of the rows' sequence lengths.

        Raises:
            RunnerError: it exceeds the model's, or a row's slot has too few blocks.
        """
        longest, size = max(lengths), self._block_size
        if longest > self._max_model_len:
            raise RunnerError(f"a sequence of {longest} tokens, the longest may have {self._max_model_len}")
        for group in self._groups:
            held = group.num_entries
            if any(length > held[slot] * size for slot, length in zip(slots, lengths, strict=True)):
                raise RunnerError("a row's tokens reach beyond the blocks of its slot")
        return longest

    def _pad(self, step: StepPlan, bucket: Bucket) -> None:
        """Adds rows whose tokens go to the trash block and whose logits are not read.

        In a step of decodes each has the first token of a sequence; in other steps the first has all the tokens that
        are missing, and the others are empty.
        """
        rows, tokens = len(step.rows), step.num_tokens
        added, ends = slice(rows, bucket.rows), slice(rows + 1, bucket.rows + 1)
        self._feed.array[tokens : bucket.tokens] = 0
        self._slots.array[added] = self._num_slots
        self._carried.array[added] = 0
        if bucket.max_query_len == 1:
            self._seq_lens.array[added] = 1
            self._query_start_loc.array[ends] = self._arange[ends]
            self._logit_start_loc.array[ends] = self._arange[ends]
        elif rows < bucket.rows:
            self._seq_lens.array[added] = 0
            self._seq_lens.array[rows] = bucket.tokens - tokens
            self._query_start_loc.array[ends] = bucket.tokens
            self._logit_start_loc.array[ends] = step.num_logit_rows
