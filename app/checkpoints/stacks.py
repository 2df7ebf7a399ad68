"""Tensors that checkpoints hold under other names, or several in one, as those that are meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Final

from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.models.names import StoredParts
from app.quant.destination import Extent

_EXPERT = "{expert}"
_MAX_EXPERTS: Final = 1 << 12
"""Experts of a stack, at most: a stranger's header may claim any number."""


def unstacked(stored: StoredTensor, stacks: Mapping[str, StoredParts]) -> Iterator[StoredTensor]:
    """The tensors that one stands for, each read by itself; any other tensor as it is.

    Args:
        stacks: see :attr:`app.models.names.DecoderNames.stacks`.
    """
    matches = ((_pattern(end).fullmatch(stored.name), held) for end, held in stacks.items())
    match, held = next(((match, held) for match, held in matches if match is not None), (None, StoredParts(())))
    if match is None:
        yield stored
        return
    prefix, named = match["prefix"], match.groupdict().get("expert")
    stacked = named is None and _EXPERT in held.parts[0]
    if not _is_whole(stored.shape, held, stacked=stacked):
        yield stored  # which nobody has a place for
        return
    rows, *columns = _of_expert(stored.shape, held) if stacked else stored.shape
    experts, count = stored.shape[0] if stacked else 1, len(held.parts)
    shape, nbytes = (rows // count, *columns), stored.nbytes // (experts * count)
    for expert in range(experts):
        for index, part in enumerate(held.parts):
            read = partial(_read, stored, held, expert if stacked else None, index)
            name = prefix + part.replace(_EXPERT, named or str(expert))
            yield StoredTensor(name, stored.file, shape, nbytes, read, stored.packing)


@lru_cache(maxsize=256)
def _pattern(end: str) -> re.Pattern[str]:
    return re.compile(r"(?P<prefix>.*\.)" + re.escape(end).replace(re.escape(_EXPERT), r"(?P<expert>\d+)"))


def _of_expert(shape: tuple[int, ...], held: StoredParts) -> tuple[int, ...]:
    return shape[:0:-1] if held.transposed else shape[1:]


def _is_whole(shape: tuple[int, ...], held: StoredParts, *, stacked: bool) -> bool:
    if not stacked:
        return len(shape) > 0 and shape[0] % len(held.parts) == 0
    if len(shape) != held.dims or not 0 < shape[0] <= _MAX_EXPERTS:
        return False
    return _of_expert(shape, held)[0] % len(held.parts) == 0


def _read(
    stored: StoredTensor, held: StoredParts, expert: int | None, index: int, extent: Extent | None = None
) -> Tensor:
    """A part of a tensor, or of one expert's, or an extent of it."""
    count = len(held.parts)
    if expert is None:
        size = stored.shape[0] // count
        start = index * size
        if extent is not None and extent.dim == 0:
            return stored.read(Extent(0, start + extent.start, start + extent.stop))
        rows = stored.read(Extent(0, start, start + size))
    else:
        whole = stored.read(Extent(0, expert, expert + 1))[0]
        if held.transposed:
            whole = whole.t()
        size = whole.shape[0] // count
        rows = whole[index::count] if held.interleaved else whole[index * size : (index + 1) * size]
    return (rows if extent is None else extent.of(rows)).contiguous()
