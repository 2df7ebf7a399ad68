"""All tiers below the pools: where a record is found, and where it goes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.contract.frames import TierStats
from app.engine.kv.tiers.disk import DiskTier
from app.engine.kv.tiers.ram import RamTier
from app.engine.runner import BlockRecords, BlockRunner

_log = logging.getLogger(__name__)


class _Arriving(NamedTuple):
    """Records on their way from the device."""

    names: list[bytes]
    records: BlockRecords
    kept: bool
    """Whether the pool has them still: they are copied to the disk alone."""


def name_of(group: int, digest: bytes) -> bytes:
    """Name of a group's record of the block with a digest."""
    return bytes((group,)) + digest


class Tiers:
    """Memory and files together. Only the engine's thread calls it.

    Args:
        block_bytes: bytes of a record of each group.
        ram, disk: the tiers that there are.
    """

    def __init__(
        self, runner: BlockRunner, block_bytes: Sequence[int], ram: RamTier | None, disk: DiskTier | None
    ) -> None:
        self._runner, self._block_bytes = runner, block_bytes
        self.ram, self.disk = ram, disk
        self._arriving: deque[_Arriving] = deque()
        self._is_broken = False

    @property
    def writes_behind(self) -> bool:
        """Whether the pool's blocks are to be copied while it has them still."""
        return self.disk is not None and not self._is_broken and not self.disk.is_paused

    @property
    def has_arriving(self) -> bool:
        """Whether records are on their way from the device."""
        return bool(self._arriving)

    def bytes_of(self, group: int) -> int:
        """Bytes of a record of a group."""
        return self._block_bytes[group]

    def has(self, group: int, digest: bytes) -> bool:
        """Whether a tier seems to have a block's record: a file may still turn out to be damaged."""
        name = name_of(group, digest)
        in_ram = self.ram is not None and name in self.ram
        return not self._is_broken and (in_ram or (self.disk is not None and name in self.disk))

    @property
    def num_from_disk(self) -> int:
        """Records that were read from files so far."""
        return 0 if self.disk is None else self.disk.counts.hits

    def get(self, group: int, digest: bytes) -> bytes | None:
        """The record of a block; None: no tier has it whole."""
        name = name_of(group, digest)
        record = None if self.ram is None else self.ram.get(name)
        tier: RamTier | DiskTier | None = self.ram
        if record is None and self.disk is not None:
            record, tier = self.disk.get(name, self._block_bytes[group]), self.disk
        if record is not None and tier is not None:
            tier.counts.hits += 1
            if tier is self.disk and self.ram is not None:
                self.ram.counts.misses += 1
        return record

    def touch(self, names: Iterable[bytes]) -> None:
        """Makes records the most recently used ones in memory, the last of them most of all. Files are touched when a
        request's blocks are kept."""
        if self.ram is not None:
            self.ram.touch(names)

    def count_tokens(self, tokens: int, *, from_disk: bool) -> None:
        """Counts tokens by which restored blocks made a hit longer."""
        tier = self.disk if from_disk else self.ram
        if tier is not None:
            tier.counts.hit_tokens += tokens

    def count_misses(self, blocks: int) -> None:
        """Counts blocks that were looked up in vain."""
        for tier in (self.ram, self.disk):
            if tier is not None:
                tier.counts.misses += blocks

    def discard(self, groups: int, digests: Iterable[bytes]) -> None:
        """Forgets all groups' records of blocks whose contents turned out not to be right."""
        names = {name_of(group, digest) for digest in digests for group in range(groups)}
        self._arriving = deque(each for each in self._arriving if names.isdisjoint(each.names))
        for name in names:
            for tier in (self.ram, self.disk):
                if tier is not None:
                    tier.discard(name)

    # -- from and to the pages ----------------------------------------------------------------------------------

    def save(self, group: int, blocks: Sequence[tuple[int, bytes]], *, kept: bool) -> None:
        """Copies blocks, given with their digests, that no tier has yet.

        Args:
            kept: the pool has them still; otherwise they are about to be overwritten.
        """
        names, block_ids = [], []
        for block_id, digest in blocks:
            name = name_of(group, digest)
            if not self._is_there(name, kept=kept):
                names.append(name)
                block_ids.append(block_id)
        if not names or self._is_broken:
            return
        try:
            records = self._runner.read_blocks(group, block_ids)
        except Exception:  # noqa: BLE001 - whatever the device side raises costs the tiers, and no request
            self._break()
        else:
            self._arriving.append(_Arriving(names, records, kept))
            self.settle()

    def _is_there(self, name: bytes, *, kept: bool) -> bool:
        if self.ram is not None and not kept:
            if name in self.ram:
                self.ram.touch([name])
                return True
            return False
        return self.disk is None or self.disk.knows(name)

    def write(self, group: int, block_ids: Sequence[int], records: Sequence[bytes]) -> bool:
        """Copies records into blocks, before whatever step is submitted next; returns whether that was done."""
        try:
            self._runner.write_blocks(group, block_ids, records)
        except Exception:  # noqa: BLE001 - whatever the device side raises costs the tiers, and no request
            self._break()
            return False
        return True

    def settle(self, *, wait: bool = False) -> None:
        """Puts records that have come from the device where they belong.

        Args:
            wait: waits for those that have not.
        """
        while self._arriving and (wait or self._arriving[0].records.ready()):
            names, records, kept = self._arriving.popleft()
            for name, record in zip(names, records.take(), strict=True):
                if self.ram is None or kept:
                    self._to_disk(name, record)
                else:
                    for gone in self.ram.put(name, record):
                        self._to_disk(*gone)

    def _to_disk(self, name: bytes, record: bytes) -> None:
        if self.disk is not None:
            self.disk.store(name, record)

    def _break(self) -> None:
        """Goes on without tiers: what copies blocks does not work."""
        self._is_broken = True
        self._arriving.clear()
        _log.exception("blocks cannot be copied; the engine goes on without the prefix cache's tiers")

    # -- state --------------------------------------------------------------------------------------------------

    def stats(self) -> list[TierStats]:
        """Counts of each tier."""
        named = (("ram", self.ram), ("disk", self.disk))
        return [tier.counts.stats(name, tier.held_bytes) for name, tier in named if tier is not None]

    def close(self, seconds: float) -> None:
        """Brings to the disk what is in memory alone, as far as that can be done in so many seconds."""
        if self.disk is None:
            return
        self.settle(wait=True)
        for name, record in self.ram.newest_first() if self.ram is not None else ():
            if not self.disk.has_room:
                break
            self.disk.store(name, record)
        self.disk.close(seconds)
