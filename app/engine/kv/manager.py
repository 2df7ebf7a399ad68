"""The blocks of all KV groups of an engine, and the prefix cache over them.

A request has a table for each group, all of one length: an entry for every block of its tokens. What the entries hold,
which of them are given back and what makes a hit is the group's policy; a prefix is a hit as far as *every* group
can serve it. Numbers of blocks are tuples, one for each group.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from app.contract.config import EngineConfig
from app.contract.frames import Holding, Holdings, TierStats
from app.contract.info import NO_BLOCK, KVCacheGroup, KVCacheSpec
from app.engine.kv.chain import PrefixChain
from app.engine.kv.counted import CountedPolicy
from app.engine.kv.counts import Counts, all_fit
from app.engine.kv.full import FullPolicy
from app.engine.kv.group import GroupPolicy
from app.engine.kv.pool import BlockPool, IntegrityError
from app.engine.kv.sliding import SlidingPolicy
from app.engine.kv.state import StatePolicy
from app.engine.kv.table import BlockTable
from app.engine.request import Request

KINDS: dict[str, type[GroupPolicy]] = {
    "full": FullPolicy,
    "sliding": SlidingPolicy,
    "state": StatePolicy,
    "counted": CountedPolicy,
}


class Hit(NamedTuple):
    """A cached prefix of a request."""

    num_blocks: int
    """Blocks of the prefix."""
    entries: list[list[int]]
    """The first entries of each group's block table."""
    parting: int = 0
    """Blocks of a longer prefix that only the groups that keep everything have; 0: there is none. A row that ends there
    leaves the state that is missing, so that the next request with this prefix finds all of it."""


class Ending(NamedTuple):
    """What a request has left in the pools so far, all of it computed."""

    digests: list[bytes]
    """Digests of its full blocks."""
    num_blocks: int
    """How many of them count."""


class BlockRef(NamedTuple):
    """A block of one KV group."""

    group: int
    """Index of the group."""
    block_id: int


class KVManager:
    """Tables, pools and prefix cache of every group. Every operation is O(blocks it touches)."""

    def __init__(
        self,
        spec: KVCacheSpec,
        config: EngineConfig,
        *,
        max_model_len: int,
        pipeline_depth: int = 1,
        identity: Sequence[str] = (),
    ) -> None:
        """
        Args:
            identity: as of :class:`~app.engine.kv.chain.PrefixChain`.

        Raises:
            ValueError: there is a group that the engine does not know.
        """
        self.block_size = spec.block_size
        self._policies = [_policy(group, spec.block_size) for group in spec.groups]
        self._pools = [BlockPool(group.num_blocks) for group in spec.groups]
        self._chain = PrefixChain(spec.block_size, identity)
        self._prefix_caching = config.enable_prefix_caching
        self._written_late = [index for index, policy in enumerate(self._policies) if not policy.readable_at_once]
        self._by_reach = sorted(range(len(self._pools)), key=lambda index: not self._policies[index].keeps_all)
        """Indices of the groups; those in which a missing block ends the prefix come first."""
        self._all_kept = [index for index, policy in enumerate(self._policies) if policy.keeps_all]
        self._leaves_at_ends = any(policy.leaves_at_ends for policy in self._policies)
        self._giving = [index for index, policy in enumerate(self._policies) if not policy.keeps_all]
        self._fresh: set[BlockRef] = set()
        """Blocks published in the step that is being filled, of groups whose rows do not see each other."""
        self.can_rewind = all(policy.can_rewind for policy in self._policies)
        """Whether a sequence can go back by some tokens and go on from there."""
        self.num_tokens = spec.block_size * min(
            (policy.capacity(max_model_len) for policy in self._policies), default=0
        )
        """Tokens of the longest sequence that every group can hold; 0 without groups, where nothing is generated."""
        tokens = config.max_num_batched_tokens
        self.max_chunk = min((policy.max_chunk(tokens, max_model_len) for policy in self._policies), default=tokens)
        """Tokens of a row, at most: as many as the smallest pool of a group that gives blocks back holds at once."""
        self._most = {"chunk": self.max_chunk, "steps": pipeline_depth}

    # -- counts -------------------------------------------------------------------------------------------------

    @property
    def num_free(self) -> Counts:
        """Blocks that no request holds, published ones included."""
        return tuple(pool.num_free for pool in self._pools)

    def fullest(self) -> BlockPool:
        """The pool of which the largest share is held."""
        if len(self._pools) == 1:  # asked in every step
            return self._pools[0]
        return max(self._pools, key=lambda pool: pool.num_held / max(1, pool.num_blocks), default=BlockPool(0))

    def survey(self, requests: Iterable[Request]) -> Holdings:
        """Who of these requests holds how much of the fullest pool."""
        pool = self.fullest()
        group = next((index for index, each in enumerate(self._pools) if each is pool), None)
        sequences = []
        for request in requests:
            blocks = request.tables[group].held() if group is not None and request.tables else []
            if blocks:
                shared = sum(map(pool.is_shared, blocks))
                sequences.append(Holding(request.request_id, len(blocks), shared))
        return Holdings(total=pool.num_blocks, held=pool.num_held, cached=pool.num_cached(), sequences=sequences)

    def covers(self, request: Request, end: int) -> bool:
        """Whether the request's tables reach to position ``end``: nothing is missing then."""
        return end <= len(request.tables[0].entries) * self.block_size

    def missing(self, request: Request, end: int) -> Counts:
        """Blocks that the request's next row takes, if it ends before position ``end``."""
        tables = request.tables
        return tuple(
            len(policy.allocated(len(table.entries), end)) for policy, table in zip(self._policies, tables, strict=True)
        )

    def promised(self, requests: Sequence[Request]) -> Counts:
        """Blocks that running requests still take, at most, for their known tokens; and one for each to grow by."""
        counts = [len(requests)] * len(self._pools)
        for request in requests:
            num_tokens = len(request.token_ids)
            if not self.covers(request, num_tokens):
                for group, table in enumerate(request.tables):
                    counts[group] += self._still(group, num_tokens, len(table.entries), table.num_held)
        return tuple(counts)

    def needed(self, request: Request, hit: Hit) -> Counts:
        """Free blocks that a waiting request's known tokens take, at most, behind a cached prefix."""
        counts = []
        for group, (pool, entries) in enumerate(zip(self._pools, hit.entries, strict=True)):
            held = [block_id for block_id in entries if block_id != NO_BLOCK]
            idle = sum(pool.is_idle(block_id) for block_id in held)
            counts.append(idle + self._still(group, len(request.token_ids), len(entries), len(held)))
        return tuple(counts)

    def leaving(self, requests: Sequence[Request]) -> Counts:
        """Blocks that the requests give back once their rows under way are done."""
        counts = [0] * len(self._pools)
        for group in self._giving:
            policy = self._policies[group]
            for request in requests:
                first = policy.first_kept(request.num_computed_tokens)
                counts[group] += request.tables[group].num_leaving(first)
        return tuple(counts)

    def _still(self, group: int, num_tokens: int, num_entries: int, num_held: int) -> int:
        uncovered = -(-num_tokens // self.block_size) - num_entries
        if group not in self._giving:
            return max(0, uncovered)
        most = self._policies[group].group.most_blocks(num_tokens, self.block_size, **self._most)
        return max(0, min(uncovered, min(most, self._pools[group].num_blocks) - num_held))

    # -- allocation ---------------------------------------------------------------------------------------------

    def allocate(self, request: Request, end: int) -> list[list[int]]:
        """Extends the request's tables for a row that ends before position ``end``; returns each table's new entries.

        Raises:
            IntegrityError: there are not enough blocks: callers ask :meth:`missing` first.
        """
        if self.covers(request, end):
            return [[] for _ in self._pools]
        if not all_fit(missing := self.missing(request, end), self.num_free):
            raise IntegrityError(f"{missing} blocks wanted, {self.num_free} free")
        gained = []
        for policy, pool, table in zip(self._policies, self._pools, request.tables, strict=True):
            first = len(table.entries)
            entries = [NO_BLOCK] * (-(-end // self.block_size) - first)
            for index in policy.allocated(first, end):
                entries[index - first] = pool.take()
            table.extend(entries)
            gained.append(entries)
        return gained

    def give_back(self, request: Request, position: int) -> None:
        """Frees the blocks that no token from ``position`` on reads; no row under way may begin before it."""
        for group in self._giving:
            first, table = self._policies[group].first_kept(position), request.tables[group]
            if first > table.first:
                self._pools[group].release(table.drop(first))

    def release(self, tables: Sequence[BlockTable]) -> None:
        """Gives a request's blocks back. A table's end is reused before its beginning, which more requests share."""
        for pool, table in zip(self._pools, tables, strict=False):
            pool.release(reversed(table.held()))

    # -- prefix cache -------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Begins a step: its rows can read all that earlier steps published."""
        self._fresh.clear()

    def looks_up(self, request: Request) -> bool:
        """Whether the request may start from cached blocks: not when it wants logits of its whole prompt."""
        return self._prefix_caching and not request.wants_prompt_logprobs

    def match(self, request: Request) -> Hit:
        """The longest cached prefix of the request's tokens, the last token excepted.

        That one is always computed again: its logits are what the request wants, and a shared block is never written.
        """
        num_blocks = (len(request.token_ids) - 1) // self.block_size if self.looks_up(request) else 0
        if num_blocks == 0:
            return Hit(0, [[] for _ in self._pools])
        found: list[dict[int, int]] = [{} for _ in self._pools]
        num_blocks = self._longest(num_blocks, lambda group: self._finder(request, group, found[group]))
        entries = []
        for group, block_ids in enumerate(found):
            first = self._first_kept(group, num_blocks)
            entries.append([NO_BLOCK] * first + [block_ids[index] for index in range(first, num_blocks)])
        parting = 0
        if self._leaves_at_ends and self._all_kept:
            common = min(len(found[group]) for group in self._all_kept)
            parting = common if common > num_blocks else 0
        return Hit(num_blocks, entries, parting)

    def _longest(self, num_blocks: int, has_of: Callable[[int], Callable[[int], bool]]) -> int:
        """The largest number of blocks, at most ``num_blocks``, behind which a sequence can start in every group.

        Args:
            has_of: gives for a group what tells whether it has the block with an index.
        """
        agreed = 0
        for group in itertools.cycle(self._by_reach):
            if num_blocks == 0 or agreed == len(self._pools):
                break
            longest = self._policies[group].longest_hit(num_blocks, has_of(group))
            agreed = agreed + 1 if longest == num_blocks else 1
            num_blocks = longest
        return num_blocks

    def _first_kept(self, group: int, num_blocks: int) -> int:
        """Index of the first block that a sequence reads which starts behind ``num_blocks``."""
        return min(self._policies[group].first_kept(num_blocks * self.block_size), num_blocks)

    def _finder(self, request: Request, group: int, found: dict[int, int]) -> Callable[[int], bool]:
        """A function that tells whether a group has published a block of the request, and notes it in ``found``."""
        pool, size, token_ids, hashes = self._pools[group], self.block_size, request.token_ids, request.block_hashes
        late = group in self._written_late

        def has(index: int) -> bool:
            digest = hashes[index] if index < len(hashes) else self._chain.digest(request, index)
            block_id = pool.find(digest, token_ids[index * size : (index + 1) * size])
            if block_id is None or (late and BlockRef(group, block_id) in self._fresh):
                return False
            found[index] = block_id
            return True

        return has

    def share(self, request: Request, hit: Hit) -> None:
        """Starts the request's tables with a cached prefix."""
        request.tables = [BlockTable(entries) for entries in hit.entries]
        for pool, table in zip(self._pools, request.tables, strict=True):
            for block_id in table.held():
                pool.hold(block_id)
        request.num_published_blocks = hit.num_blocks

    def publish(self, request: Request, num_tokens: int) -> list[BlockRef]:
        """Publishes the full blocks of the request's first ``num_tokens`` known tokens; returns those newly published.

        Args:
            num_tokens: where a row of the request ended.
        """
        first, num_full = request.num_published_blocks, num_tokens // self.block_size
        if not self._prefix_caching or num_full <= first:
            return []
        refs: list[BlockRef] = []
        for group, (policy, pool) in enumerate(zip(self._policies, self._pools, strict=True)):
            entries = request.tables[group].entries
            for index in policy.published(first, num_full):
                block_id = entries[index]
                if block_id != NO_BLOCK and pool.publish(
                    block_id, self._chain.digest(request, index), self._chain.tokens(request, index)
                ):
                    refs.append(BlockRef(group, block_id))
        request.num_published_blocks = num_full
        self._fresh.update(ref for ref in refs if ref.group in self._written_late)
        return refs

    # -- tiers below the pools, of which this manager has none: see TieredKVManager -----------------------------

    @property
    def has_backlog(self) -> bool:
        """Whether :meth:`write_behind` has something to do."""
        return False

    def restore(self, request: Request, hit: Hit, *, bounded: bool) -> Hit | None:  # noqa: ARG002
        """Restores blocks for a waiting request that is about to start from ``hit``, and for which there is room.

        Args:
            bounded: others have rows in the next step, which is not kept waiting for long.

        Returns:
            The hit that the request starts from; None: there is more to restore before the step behind the next one.
        """
        return hit

    def end_step(self) -> None:
        """Ends the filling of a step: saves what the blocks hold that it will overwrite."""

    def ending(self, request: Request, num_tokens: int | None = None) -> Ending | None:  # noqa: ARG002
        """What a request leaves, to be given to :meth:`keep` once it has been computed; None: nothing is to be kept.

        Args:
            num_tokens: counts its first tokens alone; None: all that it has published.
        """
        return None

    def keep(self, ending: Ending) -> None:
        """Has copied behind the steps what a request left."""

    def write_behind(self, *, idle: bool) -> None:
        """Copies some of it, more if the engine is idle."""

    def tier_stats(self) -> list[TierStats]:
        """Counts of each tier."""
        return []

    def close(self, seconds: float) -> None:
        """Copies what is left, as far as that can be done in so many seconds. The manager is of no use afterwards."""

    # -- publications -------------------------------------------------------------------------------------------

    def refs(self, request: Request) -> list[BlockRef]:
        """All blocks that the request holds."""
        return [BlockRef(group, block_id) for group, table in enumerate(request.tables) for block_id in table.held()]

    def withdraw(self, refs: Iterable[BlockRef]) -> None:
        """Ends the publication of blocks whose contents turned out not to be there. Holders keep their holds."""
        for ref in refs:
            self._pools[ref.group].withdraw([ref.block_id])

    def withdraw_all(self, request: Request) -> None:
        """Ends the publication of all blocks that the request may have written, given back since or not."""
        for pool in self._pools:
            pool.withdraw_digests(request.block_hashes)

    # -- invariants ---------------------------------------------------------------------------------------------

    def check_integrity(self, held: Iterable[Sequence[BlockTable]]) -> None:
        """Compares reference counts with the block tables of all holders.

        Raises:
            IntegrityError: they differ.
        """
        requests = [tables for tables in held if tables]
        for tables in requests:
            for table in tables:
                table.check_integrity()
        for group, pool in enumerate(self._pools):
            pool.check_integrity([tables[group].held() for tables in requests])


def _policy(group: KVCacheGroup, block_size: int) -> GroupPolicy:
    if group.kind not in KINDS:
        raise ValueError(f"the engine knows KV cache groups of {', '.join(KINDS)}, not of {group.kind!r}")
    return KINDS[group.kind](group, block_size)
