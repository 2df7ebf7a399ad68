"""Recent answers of each tenant: what one was told is a guess for what the same one is told next, and for nobody else.

A guess changes no text, but how fast an answer comes says whether it was right: so tenants do not share.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from app.engine.drafts.ngrams import Match, NGramIndex

_TOKENS = 1 << 14
_TENANTS = 16
"""Tokens that are kept of a tenant, and tenants of whom some are, at most: those who were answered last."""


class Histories:
    """Answers by tenant.

    Args:
        size: tokens of an n-gram.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._indices: OrderedDict[str, NGramIndex] = OrderedDict()

    def add(self, tenant: str, token_ids: Sequence[int]) -> None:
        """Takes an answer, of a long one the beginning."""
        index = self._indices.pop(tenant, None) or NGramIndex(self._size, _TOKENS)
        self._indices[tenant] = index
        index.append(token_ids[: _TOKENS // 4])
        index.end_text()
        if len(self._indices) > _TENANTS:
            self._indices.popitem(last=False)

    def find(self, tenant: str, context: list[int], count: int) -> Match | None:
        """See :meth:`~app.engine.drafts.ngrams.NGramIndex.find`."""
        index = self._indices.get(tenant)
        return None if index is None else index.find(context, count)
