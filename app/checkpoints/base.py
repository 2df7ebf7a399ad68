"""A tensor of a checkpoint, whatever format its file has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from app.quant.destination import Extent


class Read(Protocol):
    """Reads a tensor from its file, or an extent of it and little more."""

    def __call__(self, extent: Extent | None = None, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor still on disk."""

    name: str
    """Name in a Hugging Face checkpoint, e.g. ``model.layers.0.self_attn.q_proj.weight``."""
    file: Path
    """The file that holds it."""
    shape: tuple[int, ...]
    """Shape as :attr:`read` gives it."""
    nbytes: int
    """Bytes in the file."""
    read: Read
    """Reads it: as stored from safetensors, fp32 from GGUF and where it is quantised. Raises :class:`WeightError`."""
    packing: str | None = None
    """The format's name of how several of its values are kept together, e.g. ``MXFP4``; None where each is alone."""
    blocks: Callable[[], Tensor] | None = None
    """Reads its rows [N, bytes of a row] uint8 in blocks of that format, as the file has them or moved; None where it
    is not made of them. Raises :class:`WeightError`."""


class Tensors(Protocol):
    """The function ``tensors`` of a format's module."""

    def __call__(self, file: Path, /) -> Iterator[StoredTensor]:
        """Lists the tensors of a file; its header is checked, data is not yet read.

        Raises:
            WeightError: unreadable, truncated or malformed.
        """
