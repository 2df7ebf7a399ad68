"""Tensors of all experts of a layer in one, as those of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.quant.destination import Extent

_EXPERT = "{expert}"
_MAX_EXPERTS: Final = 1 << 12
"""A stranger's header may say anything: what is listed for one of its tensors is bounded."""


def unstacked(stored: StoredTensor, stacks: Mapping[str, Sequence[str]]) -> Iterator[StoredTensor]:
    """The tensors that a stack [X, N, K] stands for, each read by itself; any other tensor as it is.

    Args:
        stacks: see :attr:`app.models.names.DecoderNames.stacks`.
    """
    end = next((end for end in stacks if stored.name.endswith(f".{end}")), None)
    parts = () if end is None else stacks[end]
    if end is None or not _is_stack(stored.shape, len(parts)):
        yield stored  # which nobody has a place for, if it is of a stack's name
        return
    prefix, (experts, rows, columns) = stored.name.removesuffix(end), stored.shape
    shape, nbytes = (rows // len(parts), columns), stored.nbytes // (experts * len(parts))
    for expert in range(experts):
        for index, part in enumerate(parts):
            read = partial(_read, stored, expert, Extent(0, index * shape[0], (index + 1) * shape[0]))
            yield StoredTensor(prefix + part.replace(_EXPERT, str(expert)), stored.file, shape, nbytes, read)


def _is_stack(shape: tuple[int, ...], parts: int) -> bool:
    return len(shape) == 3 and 0 < shape[0] <= _MAX_EXPERTS and shape[1] % parts == 0


def _read(stack: StoredTensor, expert: int, rows: Extent, extent: Extent | None = None) -> Tensor:
    part = rows.of(stack.read(Extent(0, expert, expert + 1))[0])
    return part if extent is None else extent.of(part)
