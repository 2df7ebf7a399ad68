"""Hashes by which the prefix cache knows prefixes: a chain over their blocks of tokens, the same for all KV groups."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import msgspec

from app.engine.request import Request


class PrefixChain:
    """Digests of requests' blocks of tokens.

    Args:
        block_size: tokens of a block.
        identity: names everything that KV contents depend on besides a request's tokens and adapter: model, KV dtypes.
    """

    def __init__(self, block_size: int, identity: Sequence[str]) -> None:
        self._block_size = block_size
        self._identity = list(identity)

    def tokens(self, request: Request, index: int) -> list[int]:
        """Token ids of a request's block ``index``, of which all tokens are known."""
        return request.token_ids[index * self._block_size : (index + 1) * self._block_size]

    def digest(self, request: Request, index: int) -> bytes:
        """SHA-256 of all of a request's tokens through block ``index``; computed once for each request."""
        hashes = request.block_hashes
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else self._root(request)
            tokens = array("q", self.tokens(request, len(hashes)))
            hashes.append(hashlib.sha256(parent + tokens.tobytes()).digest())
        return hashes[index]

    def _root(self, request: Request) -> bytes:
        adapter = [] if request.adapter is None else [request.adapter.identity]
        return hashlib.sha256(msgspec.msgpack.encode([request.cache_salt, *self._identity, *adapter])).digest()
