"""Where a checkpoint's tensor goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Destination(Protocol):
    """Takes one tensor of a checkpoint in, in whatever format it is kept. A ``torch.Tensor`` is one."""

    @property
    def shape(self) -> Sequence[int]:
        """Of the checkpoint's tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once it is here."""

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""

    def copy_(self, source: Tensor, /) -> object:
        """Stores a floating tensor of that shape."""


class Tee:
    """One tensor of a checkpoint that is kept twice, say as a table to look up in and as a packed weight."""

    def __init__(self, *destinations: Destination) -> None:
        self.parts = destinations

    @property
    def shape(self) -> Sequence[int]:
        """Of the checkpoint's tensor."""
        return self.parts[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(part.nbytes for part in self.parts)

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""
        return self.parts[0].numel()

    def copy_(self, source: Tensor, /) -> None:
        """Stores a tensor in each."""
        for part in self.parts:
            part.copy_(source)
