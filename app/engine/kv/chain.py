"""What a prefix is known by: a chain of hashes over its blocks of tokens, the same for all KV groups."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import msgspec

from app.engine.request import Request


class PrefixChain:
    """Digests of requests' blocks."""

    def __init__(self, block_size: int, identity: Sequence[str]) -> None:
        """``identity`` names everything besides the tokens that KV contents depend on: model, adapter, KV dtypes."""
        self._block_size = block_size
        self._identity = list(identity)

    def tokens(self, request: Request, index: int) -> list[int]:
        """Those of a full block of known tokens."""
        return request.token_ids[index * self._block_size : (index + 1) * self._block_size]

    def digest(self, request: Request, index: int) -> bytes:
        """Hash of all tokens through block ``index``, computed once a request."""
        hashes = request.block_hashes
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else self._root(request)
            tokens = array("q", self.tokens(request, len(hashes)))
            hashes.append(hashlib.sha256(parent + tokens.tobytes()).digest())
        return hashes[index]

    def _root(self, request: Request) -> bytes:
        return hashlib.sha256(msgspec.msgpack.encode([request.cache_salt, *self._identity])).digest()
