"""The sizes that a GPU's steps are padded to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Bucket(NamedTuple):
    """A size that steps are padded to."""

    tokens: int
    rows: int
    max_query_len: int
    """1: decodes alone."""


_SMALL = (1, 2, 4, 8)
_STEP = 16
_MOST_ROWS = 256
_MIXED_ROWS = (4, 16, 64, 256)
"""Of steps that are not decodes alone: what a row costs that only pads is little beside the tokens of a prompt."""
_MIXED_TOKENS = (*range(16, 65, 16), 96, 128, 192, 256, *range(384, 1024, 128), *range(1024, 2049, 256))
"""Steps of more tokens take a GPU longer than even a slow host needs to launch them."""
_BYTES_PER_LAYER = 32 << 10
"""That the driver takes for a recording of a model, twice what was found: on an H200 (driver 580) four recordings of 36
layers took 2 MiB in all (``driver_bytes`` of the GPU report). What does not fit is not recorded."""


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8 and then every sixteenth to 256, as far as ``max_rows``, which is one itself."""
    sizes = (*_SMALL, *range(_STEP, _MOST_ROWS + 1, _STEP))
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in sizes if size < most), most)


def mixed_row_buckets(max_rows: int) -> tuple[int, ...]:
    """4, 16, 64 and 256, as far as ``max_rows``, which is one itself."""
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in _MIXED_ROWS if size < most), most)


def token_buckets(max_tokens: int) -> tuple[int, ...]:
    """From 16 to 2,048 in steps of up to a half, as far as ``max_tokens``, which is one itself."""
    most = min(max_tokens, _MIXED_TOKENS[-1])
    return (*(size for size in _MIXED_TOKENS if size < most), most)


class Buckets:
    """All sizes of an engine's steps.

    Args:
        max_rows: of one step.
        max_tokens: of one step.
        max_seq_len: of any sequence.
    """

    def __init__(self, *, max_rows: int, max_tokens: int, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self._rows = row_buckets(max_rows)
        self._mixed_rows = mixed_row_buckets(max_rows)
        self._tokens = token_buckets(max_tokens)

    def decodes(self, rows: int) -> Bucket | None:
        """The smallest that holds a step of decodes alone; None where none does."""
        size = _least(self._rows, rows)
        return None if size is None else Bucket(size, size, 1)

    def mixed(self, tokens: int, rows: int) -> Bucket | None:
        """The smallest that holds a step of other rows too; None where none does.

        The tokens that pad it are one row's, of a sequence that is no longer than any may be.
        """
        size = _least(self._tokens, tokens)
        if size is None or size - tokens > self.max_seq_len:
            return None
        most = _least(self._mixed_rows, rows + (size > tokens))
        return None if most is None else Bucket(size, most, size)

    def nbytes(self, num_layers: int) -> int:
        """What all recordings of a model's steps may take of a GPU's memory."""
        mixed = len(self._tokens) * len(self._mixed_rows)
        return (len(self._rows) + mixed) * num_layers * _BYTES_PER_LAYER


def _least(sizes: Sequence[int], needed: int) -> int | None:
    """The smallest of ascending sizes that will do."""
    return next((size for size in sizes if size >= needed), None)
