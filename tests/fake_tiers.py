"""A runner without a model whose blocks can be copied, as the tiers of the prefix cache do it."""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from typing import Any

from tests.fakes import FakeRunner

_KEPT: list[Any] = []
"""What every copied block held: a record is an index into it, so that any process of a test can read it."""
_RECORD = struct.Struct("<q")
RECORD_BYTES = _RECORD.size
"""Bytes of a record, ``bytes_per_block`` of every fake group."""


class _Records:
    """Copies that are there at once, or, as on a GPU, from the next submission on."""

    def __init__(self, records: list[bytes], runner: CopyingRunner) -> None:
        self._records, self._runner, self._begun = records, runner, len(runner.plans)

    def ready(self) -> bool:
        return not self._runner.copies_late or len(self._runner.plans) > self._begun

    def take(self) -> list[bytes]:
        return self._records


class CopyingRunner(FakeRunner):
    """Implements :class:`app.engine.runner.BlockRunner`. ``fails`` has copies raise from then on."""

    def __init__(self, *args: Any, layout: str = "fake", copies_late: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.copies_late = copies_late
        self.page_layout = layout
        self.fails = False
        self.num_read = 0
        self.written: list[int] = []
        """Blocks that each call wrote."""

    def read_blocks(self, group: int, block_ids: Sequence[int]) -> _Records:
        self._may_copy()
        self.num_read += len(block_ids)
        records = []
        for block_id in block_ids:
            _KEPT.append(copy.copy(self._pages[group].contents(block_id)))
            records.append(_RECORD.pack(len(_KEPT) - 1))
        return _Records(records, self)

    def write_blocks(self, group: int, block_ids: Sequence[int], records: Sequence[bytes]) -> None:
        self._may_copy()
        self.written.append(len(block_ids))
        for block_id, record in zip(block_ids, records, strict=True):
            self._pages[group].fill(block_id, copy.copy(_KEPT[_RECORD.unpack(record)[0]]))

    def _may_copy(self) -> None:
        if self.fails:
            raise RuntimeError("fake: blocks cannot be copied")
