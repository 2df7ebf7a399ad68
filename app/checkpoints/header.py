"""Places of the tensors in a weight file, checked against the file before anything is read (torch-free).

Weight files come from strangers: sizes are multiplied and added as Python ints, which cannot overflow, and every
count that a header claims is capped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class WeightError(ValueError):
    """Weights that cannot be loaded; one line that names the file and the tensor."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a weight file."""

    name: str
    dtype: str
    """The format's own name of the type: ``BF16``, ``Q4_K``, …"""
    shape: tuple[int, ...]
    """Slowest dimension first."""
    offset: int
    """Bytes of the file before the tensor."""
    nbytes: int
    """Bytes of the tensor."""


def check_extents(path: Path, entries: Iterable[TensorEntry], data_start: int, file_size: int) -> None:
    """Checks that every tensor lies within the file's data and that no two share a byte.

    Raises:
        WeightError: naming the first tensor that does not.
    """
    end, previous = data_start, ""
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset + entry.nbytes > file_size:
            raise WeightError(
                f"{path}: truncated: tensor {entry.name!r} ends at byte {entry.offset + entry.nbytes}, "
                f"the file at byte {file_size}"
            )
        if entry.offset < end:
            raise WeightError(f"{path}: tensor {entry.name!r} overlaps {repr(previous) if previous else 'the header'}")
        end, previous = entry.offset + entry.nbytes, entry.name
