"""The blocks of one KV group.

A block is *held* by the requests whose tables name it (its reference count) or *free*. A free block may still be
*published*: its contents are known by a chained hash, and a later request with the same prefix takes it back instead
of computing it. Free blocks are handed out least recently used first, those without contents before all others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import NamedTuple


class IntegrityError(RuntimeError):
    """The block allocator's counts contradict each other: a bug, never a request's fault."""


class _Contents(NamedTuple):
    """The tokens that a published block stands for."""

    digest: bytes
    """Hash of these tokens and all before them."""
    token_ids: list[int]


class BlockPool:
    """Hands out the ids ``0 … num_blocks - 1``. Every operation is O(blocks it touches)."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._contents: list[_Contents | None] = [None] * num_blocks
        self._published: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.evicted: list[tuple[int, bytes]] | None = None
        """Published blocks that were handed out to be written, with the digests that they were known by; whoever wants
        to know makes it a list, and empties it. None: nobody does."""

    @property
    def num_free(self) -> int:
        """Blocks that no request holds, published ones included."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - len(self._free)

    def num_cached(self) -> int:
        """Blocks that no request holds and whose contents are known. Looks at every published block."""
        return sum(self._ref_counts[block_id] == 0 for block_id in self._published.values())

    # -- holds --------------------------------------------------------------------------------------------------

    def take(self) -> int:
        """A free block, held from here on; what it held is forgotten. Callers ask :attr:`num_free` first."""
        block_id, _ = self._free.popitem(last=False)
        if self.evicted is not None and (contents := self._contents[block_id]) is not None:
            self.evicted.append((block_id, contents.digest))
        self._forget(block_id)
        self._ref_counts[block_id] = 1
        return block_id

    def is_idle(self, block_id: int) -> bool:
        """Whether no request holds a block: holding it takes it off the free list."""
        return self._ref_counts[block_id] == 0

    def is_shared(self, block_id: int) -> bool:
        """Whether more than one request holds a block."""
        return self._ref_counts[block_id] > 1

    def hold(self, block_id: int) -> None:
        """Adds one hold on a published block."""
        if self._ref_counts[block_id] == 0:
            del self._free[block_id]
        self._ref_counts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Gives back one hold on each block. Of the blocks that become free, the first is reused first."""
        for block_id in block_ids:
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None
                if self._contents[block_id] is None:
                    self._free.move_to_end(block_id, last=False)

    # -- contents -----------------------------------------------------------------------------------------------

    def find(self, digest: bytes, token_ids: list[int]) -> int | None:
        """The published block of these tokens, or None.

        Args:
            digest: hash of the tokens and all before them.
        """
        block_id = self._published.get(digest)
        if block_id is None:
            return None
        contents = self._contents[block_id]
        return block_id if contents is not None and contents.token_ids == token_ids else None  # digests may collide

    def block_of(self, digest: bytes) -> int | None:
        """The block that is published under a digest, or None."""
        return self._published.get(digest)

    def publish(self, block_id: int, digest: bytes, token_ids: list[int]) -> bool:
        """Publishes a held block; returns whether that was done: of blocks with equal contents the first stays."""
        if self._contents[block_id] is not None or digest in self._published:
            return False
        self._contents[block_id] = _Contents(digest, token_ids)
        self._published[digest] = block_id
        return True

    def withdraw(self, block_ids: Iterable[int]) -> None:
        """Ends the publication of blocks whose contents turned out not to be there. Holders keep their holds."""
        for block_id in block_ids:
            self._forget(block_id)
            if self._ref_counts[block_id] == 0:
                self._free.move_to_end(block_id, last=False)

    def withdraw_digests(self, digests: Iterable[bytes]) -> None:
        """Ends the publication of all blocks that are known by these digests."""
        self.withdraw([self._published[digest] for digest in digests if digest in self._published])

    def _forget(self, block_id: int) -> None:
        contents = self._contents[block_id]
        if contents is not None:
            del self._published[contents.digest]
            self._contents[block_id] = None

    # -- invariants ---------------------------------------------------------------------------------------------

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Compares the reference counts with ``tables``, the blocks of every table that is held.

        Raises:
            IntegrityError: they differ.
        """
        holds: Counter[int] = Counter()
        for table in tables:
            if len(set(table)) != len(table):
                raise IntegrityError(f"a block table names a block twice: {table}")
            holds.update(table)
        for block_id, count in enumerate(self._ref_counts):
            if count != holds[block_id]:
                raise IntegrityError(f"block {block_id}: reference count {count}, held by {holds[block_id]}")
            if (count == 0) != (block_id in self._free):
                raise IntegrityError(f"block {block_id}: reference count {count}, free: {block_id in self._free}")
        on_offer = {contents.digest: i for i, contents in enumerate(self._contents) if contents is not None}
        if on_offer != self._published:
            raise IntegrityError("the prefix index and the blocks' contents disagree")
        if len(self._free) + len([block_id for block_id in holds if holds[block_id]]) != self.num_blocks:
            raise IntegrityError("free and held blocks do not add up")
