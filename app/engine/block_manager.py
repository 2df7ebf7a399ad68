"""Paged KV blocks and the prefix cache over them.

A block is *held* by the requests whose tables name it (its reference count) or *free*. A free block may still be
*published*: its contents are known by a chained hash, and a later request with the same prefix takes it back instead
of computing it. Free blocks are handed out least recently used first, those without contents before all others.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from app.engine.request import Request


class IntegrityError(RuntimeError):
    """The allocator's books do not balance: a bug, never a request's fault."""


class _Contents(NamedTuple):
    """What a published block holds."""

    digest: bytes
    token_ids: list[int]


class BlockManager:
    """Hands out the ids ``0 … num_blocks - 1``. Every operation is O(blocks it touches)."""

    def __init__(self, num_blocks: int, block_size: int, *, identity: Sequence[str], prefix_caching: bool) -> None:
        """``identity`` names everything besides the tokens that KV contents depend on: model, adapter, KV dtype."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._identity = list(identity)
        self._prefix_caching = prefix_caching
        self._ref_counts = [0] * num_blocks
        self._contents: list[_Contents | None] = [None] * num_blocks
        self._published: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, published ones included."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` positions take."""
        return -(-num_tokens // self.block_size)

    def num_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks ``request`` still needs to hold ``num_tokens`` positions."""
        return max(0, self.blocks_for(num_tokens) - len(request.block_ids))

    # -- allocation ---------------------------------------------------------------------------------------------

    def allocate(self, request: Request, num_tokens: int) -> list[int]:
        """Appends blocks to the request's table until it holds ``num_tokens`` positions; returns the new ones.

        Raises :class:`IntegrityError` if there are not enough: callers ask :meth:`num_missing` first.
        """
        missing = self.num_missing(request, num_tokens)
        if missing == 0:
            return []
        if missing > len(self._free):
            raise IntegrityError(f"{missing} blocks wanted, {len(self._free)} free")
        new_block_ids = [self._take_free() for _ in range(missing)]
        request.block_ids += new_block_ids
        return new_block_ids

    def _take_free(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        self._forget(block_id)
        self._ref_counts[block_id] = 1
        return block_id

    def release(self, block_ids: Sequence[int]) -> None:
        """Gives one hold on each block back. The tail of a table is reused before its head, which more can share."""
        for block_id in reversed(block_ids):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None
                if self._contents[block_id] is None:
                    self._free.move_to_end(block_id, last=False)

    # -- prefix cache -------------------------------------------------------------------------------------------

    def looks_up(self, request: Request) -> bool:
        """Whether the request may start from cached blocks: not when it wants logits of its whole prompt."""
        return self._prefix_caching and not request.wants_prompt_logprobs

    def match(self, request: Request) -> list[int]:
        """The longest run of published blocks that starts the request's tokens, the last token excepted.

        That one is always computed again: its logits are what the request wants, and a shared block is never written.
        """
        if not self.looks_up(request):
            return []
        block_ids: list[int] = []
        for index in range((len(request.token_ids) - 1) // self.block_size):
            block_id = self._published.get(self._digest(request, index))
            if block_id is None:
                break
            contents = self._contents[block_id]
            if contents is None or contents.token_ids != self._block_tokens(request, index):
                break
            block_ids.append(block_id)
        return block_ids

    def num_idle(self, block_ids: Sequence[int]) -> int:
        """How many of these blocks nobody holds: sharing them takes them off the free list."""
        return sum(self._ref_counts[block_id] == 0 for block_id in block_ids)

    def share(self, request: Request, block_ids: Sequence[int]) -> None:
        """Starts the request's empty table with published blocks."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._free[block_id]
            self._ref_counts[block_id] += 1
        request.block_ids = list(block_ids)
        request.num_published_blocks = len(block_ids)

    def publish(self, request: Request, num_tokens: int) -> list[int]:
        """Offers the request's full blocks among its first ``num_tokens`` known tokens; returns those newly offered.

        Of blocks with equal contents the first one stays on offer.
        """
        num_full_blocks = num_tokens // self.block_size
        if not self._prefix_caching or num_full_blocks <= request.num_published_blocks:
            return []
        newly_published: list[int] = []
        for index in range(request.num_published_blocks, num_full_blocks):
            block_id = request.block_ids[index]
            digest = self._digest(request, index)
            if self._contents[block_id] is None and digest not in self._published:
                self._contents[block_id] = _Contents(digest, self._block_tokens(request, index))
                self._published[digest] = block_id
                newly_published.append(block_id)
            request.num_published_blocks = index + 1
        return newly_published

    def unpublish(self, block_ids: Iterable[int]) -> None:
        """Withdraws blocks whose contents turned out not to be there. Holders keep their holds."""
        for block_id in block_ids:
            self._forget(block_id)
            if self._ref_counts[block_id] == 0:
                self._free.move_to_end(block_id, last=False)

    def _forget(self, block_id: int) -> None:
        contents = self._contents[block_id]
        if contents is not None:
            del self._published[contents.digest]
            self._contents[block_id] = None

    def _block_tokens(self, request: Request, index: int) -> list[int]:
        return request.token_ids[index * self.block_size : (index + 1) * self.block_size]

    def _digest(self, request: Request, index: int) -> bytes:
        """Hash of all tokens through block ``index``, computed once a request."""
        hashes = request.block_hashes
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else self._root(request)
            tokens = array("q", self._block_tokens(request, len(hashes)))
            hashes.append(hashlib.sha256(parent + tokens.tobytes()).digest())
        return hashes[index]

    def _root(self, request: Request) -> bytes:
        return hashlib.sha256(msgspec.msgpack.encode([request.cache_salt, *self._identity])).digest()

    # -- invariants ---------------------------------------------------------------------------------------------

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Compares the books with ``tables``, every block table that is held. Raises :class:`IntegrityError`."""
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
