"""The slots' block tables of one KV cache group, and what a step's kernels read of them.

R rows (sequences) of a step, S slots, W blocks of the longest sequence, T tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from app.contract.step import ScheduledRow
from app.runner.errors import RunnerError
from app.runner.staging import StagedBuffer


class BlockTables:
    """Block tables on the device, to which a step's first kernel adds the entries that the host has staged."""

    def __init__(
        self,
        index: int,
        *,
        num_slots: int,
        max_tokens: int,
        max_blocks: int,
        device: torch.device,
        trash_block: int | None,
        table_lens: StagedBuffer,
        new_block_loc: StagedBuffer,
    ) -> None:
        """
        Args:
            index: index of the group.
            trash_block: the block that rows which only pad a step write to; None where no step is padded.
            table_lens, new_block_loc: the buffers of these fields of :class:`~app.kernels.types.StepRows`.
        """
        self._index = index
        self._max_blocks = max_blocks
        padding = 0 if trash_block is None else 1
        self.tables_SW = torch.zeros(num_slots + padding, max_blocks, dtype=torch.int32, device=device)
        if trash_block is not None:
            self.tables_SW[num_slots] = trash_block
        self.block_tables_RW = torch.zeros(num_slots, max_blocks, dtype=torch.int32, device=device)
        self.slot_mapping_T = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self.table_lens = table_lens
        self.new_block_loc = new_block_loc
        self.num_entries = [0] * num_slots
        """Number of entries of each slot's table, those included that are staged."""
        self._has_new = False
        """Whether ``new_block_loc`` names new entries of any row."""

    def append(self, rows: Sequence[ScheduledRow], feed: NDArray[Any], begin: int) -> int:
        """Stages the rows' new entries from ``feed[begin]`` on; returns the index in ``feed`` behind the last.

        Raises:
            RunnerError: a table would be longer than any may be.
        """
        index = self._index
        if not any(row.new_block_ids and row.new_block_ids[index] for row in rows):
            if self._has_new:
                self.new_block_loc.array[:] = 0
                self._has_new = False
            return begin
        self._has_new = True  # first: a step that fails here has written some
        held_of, table_lens, new_block_loc = self.num_entries, self.table_lens.array, self.new_block_loc.array
        end = begin
        for number, row in enumerate(rows):
            held = held_of[row.slot]
            table_lens[number], new_block_loc[number] = held, end
            if row.new_block_ids and (block_ids := row.new_block_ids[index]):
                if held + len(block_ids) > self._max_blocks:
                    raise RunnerError(
                        f"slot {row.slot} was given {held + len(block_ids)} blocks, its table holds {self._max_blocks}"
                    )
                feed[end : end + len(block_ids)] = block_ids
                held_of[row.slot] = held + len(block_ids)
                end += len(block_ids)
        new_block_loc[len(rows) :] = end
        return end

    def entries(self) -> list[list[int]]:
        """The entries of each slot's table, once the device has computed the steps under way."""
        rows = self.tables_SW.tolist()
        return [row[:count] for row, count in zip(rows, self.num_entries, strict=False)]
