"""The sizes that a GPU's steps are padded to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Bucket(NamedTuple):
    """A size that steps are padded to."""

    tokens: int
    """Tokens of the padded step."""
    rows: int
    """Rows of the padded step."""
    max_query_len: int
    """Tokens of the largest row; 1: all rows are decodes."""


_SMALL = (1, 2, 4, 8)
_STEP = 16
_MOST_ROWS = 256
_MIXED_ROWS = (4, 16, 64, 256)
"""Rows of steps that are not decodes alone: a row that only pads costs little beside the tokens of a prompt."""
_MIXED_TOKENS = (*range(16, 65, 16), 96, 128, 192, 256, *range(384, 1024, 128), *range(1024, 2049, 256))
"""Tokens of steps that are not decodes alone. A GPU computes longer steps for longer than even a slow host needs to
launch them."""
_BYTES_PER_LAYER = 32 << 10
"""Bytes for each layer that the driver takes for a recording of a step, twice what was measured: on an H200 (driver
580) four recordings of 36 layers took 2 MiB in all (``driver_bytes`` of the GPU report). What does not fit is not
recorded."""


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that decode steps are padded to: 1, 2, 4, 8, then multiples of 16 to 256, but none above
    ``max_rows``, which is one itself if it is smaller."""
    sizes = (*_SMALL, *range(_STEP, _MOST_ROWS + 1, _STEP))
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in sizes if size < most), most)


def mixed_row_buckets(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that other steps are padded to: 4, 16, 64 and 256, but none above ``max_rows``, which is one
    itself if it is smaller."""
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in _MIXED_ROWS if size < most), most)


def token_buckets(max_tokens: int) -> tuple[int, ...]:
    """Numbers of tokens that other steps are padded to: from 16 to 2,048, each at most twice the one before, but none
    above ``max_tokens``, which is one itself if it is smaller."""
    most = min(max_tokens, _MIXED_TOKENS[-1])
    return (*(size for size in _MIXED_TOKENS if size < most), most)


class Buckets:
    """All sizes that an engine's steps are padded to.

    Args:
        max_rows: rows of the largest step.
        max_tokens: tokens of the largest step.
        max_seq_len: tokens of the longest sequence.
    """

    def __init__(self, *, max_rows: int, max_tokens: int, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self._rows = row_buckets(max_rows)
        self._mixed_rows = mixed_row_buckets(max_rows)
        self._tokens = token_buckets(max_tokens)

    def decodes(self, rows: int) -> Bucket | None:
        """The smallest bucket for a step of so many decodes; None where there is none."""
        size = _least(self._rows, rows)
        return None if size is None else Bucket(size, size, 1)

    def mixed(self, tokens: int, rows: int) -> Bucket | None:
        """The smallest bucket for a step that is not decodes alone; None where there is none.

        The tokens that pad the step are one row's, whose sequence is no longer than any may be.
        """
        size = _least(self._tokens, tokens)
        if size is None or size - tokens > self.max_seq_len:
            return None
        most = _least(self._mixed_rows, rows + (size > tokens))
        return None if most is None else Bucket(size, most, size)

    def nbytes(self, num_layers: int) -> int:
        """Bytes of a GPU's memory that the recordings of all buckets may take."""
        mixed = len(self._tokens) * len(self._mixed_rows)
        return (len(self._rows) + mixed) * num_layers * _BYTES_PER_LAYER


def _least(sizes: Sequence[int], needed: int) -> int | None:
    """The smallest of ascending sizes that is at least ``needed``; None where there is none."""
    return next((size for size in sizes if size >= needed), None)
