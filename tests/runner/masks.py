"""Masks for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


class StackedMasks:
    """Masks that are there already: the tokens that each sample of a slot may be.

    Args:
        made_meanwhile: what they say of it; they are there all the same.
    """

    def __init__(
        self, allowed: Sequence[tuple[int, Collection[int]]], vocab_size: int, *, made_meanwhile: bool = False
    ) -> None:
        self._words = np.zeros((len(allowed), -(-vocab_size // 32)), dtype=np.uint32)
        for words, (_, token_ids) in zip(self._words, allowed, strict=True):
            for token_id in token_ids:
                words[token_id // 32] |= np.uint32(1 << token_id % 32)
        self.slots: Sequence[int] = [slot for slot, _ in allowed]
        self.made_meanwhile = made_meanwhile
        self.waited = 0
        """Times that somebody waited for them."""

    def wait(self) -> NDArray[np.uint32]:
        self.waited += 1
        return self._words


class FixedMasks(StackedMasks):
    """The tokens that the one sample of each slot may be."""

    def __init__(
        self, allowed: Mapping[int, Collection[int]], vocab_size: int, *, made_meanwhile: bool = False
    ) -> None:
        super().__init__(list(allowed.items()), vocab_size, made_meanwhile=made_meanwhile)
