"""The blocks of all KV groups with tiers below them: what the pools give up is copied, what a prompt needs comes back.

A restored block is an ordinary published block of its pool from then on, and the request that waits for it starts from
it as from any other. What a request leaves when it ends is copied to the disk behind the steps, so that a process that
ends has most of it there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from app.contract.config import EngineConfig
from app.contract.frames import TierStats
from app.contract.info import KVCacheSpec
from app.engine.kv.manager import Ending, Hit, KVManager
from app.engine.kv.tiers.tiers import Tiers, name_of
from app.engine.request import Request

_IN_TIER = -2
"""Stands for the block that a record will be restored to."""
_SLICE_BYTES = 8 << 20
"""Bytes that are restored before a step that others have rows in, about: 2 to 8 ms of copying."""
_SLICE_SECONDS = 0.01
"""Seconds after which no further record is read before such a step: a disk may be slow."""
_BEHIND_BYTES = 2 << 20
"""Bytes that are copied behind a step for the disk."""
_IDLE_BYTES = 8 << 20
"""The same while there is no work."""
_MAX_ENDINGS = 256
"""Requests that have ended and wait for their blocks to be copied, at most."""


class _Wanted(NamedTuple):
    """A block of a request."""

    group: int
    place: int
    """Index of the block among those of the request."""


class _Plan(NamedTuple):
    """What makes a request's hit longer."""

    wanted: list[_Wanted]
    """Blocks to restore, those first that every longer prefix needs."""
    present: list[dict[int, int]]
    """For each group, the blocks that the pool has of the longer prefix, by their index."""


class TieredKVManager(KVManager):
    """:class:`KVManager` over pools whose blocks are restored from tiers, and saved to them.

    Args:
        tiers: of the same groups.
        clock: seconds, to bound what is restored before a step.
    """

    def __init__(
        self,
        spec: KVCacheSpec,
        config: EngineConfig,
        tiers: Tiers,
        *,
        max_model_len: int,
        pipeline_depth: int = 1,
        identity: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(spec, config, max_model_len=max_model_len, pipeline_depth=pipeline_depth, identity=identity)
        self._tiers, self._clock = tiers, clock
        self._endings: deque[Ending] = deque()
        self._behind: deque[_Wanted] = deque()
        """Blocks of the first ending that are still to be copied."""
        for pool in self._pools:
            pool.evicted = []

    # -- restoring ----------------------------------------------------------------------------------------------

    def restore(self, request: Request, hit: Hit, *, bounded: bool) -> Hit | None:
        if not self.looks_up(request) or request.num_restorable == 0:
            return hit
        plan = self._plan(request, hit)
        while plan is not None:
            if request.num_restorable is None:
                request.num_restorable = len(plan.wanted)
            num_before, num_from_disk = hit.num_blocks, self._tiers.num_from_disk
            num_moved = self._restore_slice(request, plan, request.num_restorable, bounded=bounded)
            request.num_restorable -= num_moved
            hit = self.match(request)
            gained = max(0, hit.num_blocks - num_before) * self.block_size
            self._tiers.count_tokens(gained, from_disk=self._tiers.num_from_disk > num_from_disk)
            plan = self._plan(request, hit)
            if plan is not None and num_moved and bounded:
                return None
        request.num_restorable = 0
        self._tiers.count_misses(self._most_blocks(request) - hit.num_blocks)
        return hit

    def _most_blocks(self, request: Request) -> int:
        return (len(request.token_ids) - 1) // self.block_size

    def _plan(self, request: Request, hit: Hit) -> _Plan | None:
        """What makes a prefix longer than ``hit``; None: nothing does, or there is no room for it."""
        most = self._most_blocks(request)
        if request.num_restorable == 0 or hit.num_blocks == most:
            return None
        found: list[dict[int, int]] = [{} for _ in self._pools]
        num_blocks = self._longest(most, lambda group: self._finder_below(request, group, found[group]))
        if num_blocks <= hit.num_blocks:
            return None
        plan = _Plan([], [])
        for group, pool in enumerate(self._pools):
            needed = {index: found[group][index] for index in range(self._first_kept(group, num_blocks), num_blocks)}
            plan.present.append({index: block_id for index, block_id in needed.items() if block_id != _IN_TIER})
            idle = sum(pool.is_idle(block_id) for block_id in plan.present[group].values())
            if len(needed) - len(plan.present[group]) + idle > pool.num_free:
                return None
        for group in self._by_reach:
            plan.wanted.extend(
                _Wanted(group, index)
                for index in range(self._first_kept(group, num_blocks), num_blocks)
                if index not in plan.present[group]
            )
        return plan

    def _finder_below(self, request: Request, group: int, found: dict[int, int]) -> Callable[[int], bool]:
        """As :meth:`_finder`, over pool and tiers."""
        in_pool, tiers = self._finder(request, group, found), self._tiers

        def has(index: int) -> bool:
            if in_pool(index):
                return True
            if not tiers.has(group, self._chain.digest(request, index)):
                return False
            found[index] = _IN_TIER
            return True

        return has

    def _restore_slice(self, request: Request, plan: _Plan, most: int, *, bounded: bool) -> int:
        """Restores the first of the blocks, as many as a slice holds; returns how many there were.

        It is 0 if the first turned out to be damaged: then it is in no tier any more.

        Args:
            most: blocks, at most.
            bounded: a step of others waits for this slice.
        """
        began, nbytes = self._clock(), 0
        # What comes last in a prompt is given up first, and none of it for what this puts out of the pools.
        self._tiers.touch(name_of(group, self._chain.digest(request, at)) for group, at in reversed(plan.wanted))
        records: list[dict[int, bytes]] = [{} for _ in self._pools]
        for group, index in plan.wanted[:most]:
            record = self._tiers.get(group, self._chain.digest(request, index))
            if record is None:
                break
            records[group][index] = record
            nbytes += len(record)
            if nbytes >= _SLICE_BYTES or (bounded and self._clock() - began >= _SLICE_SECONDS):
                break
        for group, of_group in enumerate(records):
            if of_group:
                self._restore_blocks(request, group, of_group, plan.present[group])
        return sum(map(len, records))

    def _restore_blocks(
        self, request: Request, group: int, records: Mapping[int, bytes], present: Mapping[int, int]
    ) -> None:
        """Copies records into free blocks of a pool and publishes them, to be reused last of all.

        Args:
            records: records by the index of their block.
            present: blocks of the request that the pool has, which are not given up for these.
        """
        pool = self._pools[group]
        for block_id in present.values():
            pool.hold(block_id)
        taken = {index: pool.take() for index in records}
        self.end_step()  # what these blocks held is saved before it is overwritten
        if self._tiers.write(group, list(taken.values()), list(records.values())):
            for index, block_id in taken.items():
                pool.publish(block_id, self._chain.digest(request, index), self._chain.tokens(request, index))
        blocks = {**present, **taken}
        pool.release(blocks[index] for index in sorted(blocks, reverse=True))

    # -- saving -------------------------------------------------------------------------------------------------

    def end_step(self) -> None:
        for group, pool in enumerate(self._pools):
            if pool.evicted:
                self._tiers.save(group, pool.evicted, kept=False)
                pool.evicted.clear()

    def ending(self, request: Request, num_tokens: int | None = None) -> Ending | None:
        num_blocks = request.num_published_blocks
        if num_tokens is not None:
            num_blocks = min(num_blocks, num_tokens // self.block_size)
        if num_blocks == 0 or not self._tiers.writes_behind:
            return None
        return Ending(request.block_hashes, num_blocks)

    def keep(self, ending: Ending) -> None:
        if len(self._endings) == _MAX_ENDINGS:
            self._endings.popleft()
            self._behind.clear()
        self._endings.append(ending)

    @property
    def has_backlog(self) -> bool:
        return bool(self._endings or self._tiers.has_arriving)

    def write_behind(self, *, idle: bool) -> None:
        self._tiers.settle()
        self._write_behind(_IDLE_BYTES if idle else _BEHIND_BYTES)

    def _write_behind(self, budget: int) -> None:
        disk = self._tiers.disk
        while self._endings and budget > 0:
            if disk is None or not self._tiers.writes_behind:
                self._endings.clear()
                self._behind.clear()
                return
            ending = self._endings[0]
            if not self._behind:
                self._behind.extend(self._needed_of(ending))
            batch: dict[int, list[tuple[int, bytes]]] = {}
            while self._behind and budget > 0 and disk.has_room:
                group, index = self._behind.popleft()
                digest = ending.digests[index]
                block_id = self._pools[group].block_of(digest)
                if block_id is not None and not disk.knows(name_of(group, digest)):
                    batch.setdefault(group, []).append((block_id, digest))
                    budget -= self._tiers.bytes_of(group)
            for group, blocks in batch.items():
                self._tiers.save(group, blocks, kept=True)
            if self._behind:
                return
            used = reversed(self._needed_of(ending))  # what more prompts begin with is kept longest
            disk.touch(name_of(group, ending.digests[index]) for group, index in used)
            self._endings.popleft()

    def _needed_of(self, ending: Ending) -> list[_Wanted]:
        """Blocks that a sequence which goes on from there reads, as far as there are any."""

        def has_of(group: int) -> Callable[[int], bool]:
            pool, digests = self._pools[group], ending.digests
            return lambda index: pool.block_of(digests[index]) is not None or self._tiers.has(group, digests[index])

        num_blocks = self._longest(ending.num_blocks, has_of)
        groups = range(len(self._pools))
        return [
            _Wanted(group, index)
            for group in groups
            for index in range(self._first_kept(group, num_blocks), num_blocks)
        ]

    # -- the rest -----------------------------------------------------------------------------------------------

    def withdraw_all(self, request: Request) -> None:
        super().withdraw_all(request)
        self._tiers.discard(len(self._pools), request.block_hashes)

    def tier_stats(self) -> list[TierStats]:
        return self._tiers.stats()

    def close(self, seconds: float) -> None:
        deadline = self._clock() + seconds
        while self._endings and self._clock() < deadline:
            before = len(self._endings), len(self._behind)
            self._write_behind(_IDLE_BYTES)
            if before == (len(self._endings), len(self._behind)):
                time.sleep(0.005)  # until the disk has caught up
        self._tiers.close(max(0.0, deadline - self._clock()))
