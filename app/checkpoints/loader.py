"""Copies the tensors of a checkpoint into a model, every one accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from app.checkpoints import fp8 as in_fp8
from app.checkpoints import mxfp4
from app.checkpoints.base import StoredTensor
from app.checkpoints.formats import format_of
from app.checkpoints.header import WeightError
from app.checkpoints.stacks import unstacked
from app.models.names import StoredParts
from app.models.quantization import Fp8Scales
from app.quant.destination import Destination, Extent, Part
from app.quant.stored_blocks import block_parts, block_places

__all__ = ["StoredTensor", "WeightError", "iter_weights", "load_weights"]

_NAMES_SHOWN: Final = 5
_TABLE_ROWS: Final = 1 << 16
"""A matrix with as many is a table of a vocabulary, which files hold row by row as it is kept."""
_COPIED_ELEMENTS: Final = 1 << 26
"""Elements of a table that are read at a time: files that quantise it give fp32, which of gigabytes would be as many
again and more."""


def iter_weights(
    files: Sequence[Path], stacks: Mapping[str, StoredParts] | None = None, fp8: Fp8Scales | None = None
) -> Iterator[StoredTensor]:
    """Lists the tensors of ``files``, each of a format of :mod:`app.checkpoints.formats`; headers are checked, data is
    not yet read.

    Args:
        stacks: see :attr:`app.models.names.DecoderNames.stacks`; each expert's tensors are listed in place of those.
        fp8: see :attr:`app.models.config.ModelConfig.fp8`; scales are listed as one with what they scale.

    Raises:
        WeightError: another format, a file that is unreadable, truncated or malformed, or tensors in FP8 without scales
            that fit.
    """
    listed = (stored for file in files for stored in format_of(file).tensors(file))
    scaled = in_fp8.widened(listed, fp8)
    yield from mxfp4.widened(each for stored in scaled for each in unstacked(stored, stacks or {}))


def load_weights(
    destinations: Mapping[str, Destination],
    files: Sequence[Path],
    *,
    ignore: Callable[[str], bool],
    progress: Callable[[int, int], None],
    twins: Mapping[str, Sequence[str]] | None = None,
    stacks: Mapping[str, StoredParts] | None = None,
    fp8: Fp8Scales | None = None,
) -> list[str]:
    """Copies every tensor of ``files`` into the destination of its name, which keeps it in its own format.

    Names and shapes are checked before the first copy. One tensor at a time is in memory beside the destinations, of a
    table some of its rows.

    Args:
        destinations: checkpoint name -> where it goes (a view of a tensor, or what quantises it).
        ignore: tells whether a left-over name is no error (tied or computed tensors).
        progress: called with bytes of the files that are done and in all.
        twins: names of destinations -> tensors that go there where the files lack that one, the first that they have.
        stacks: see :func:`iter_weights`.
        fp8: likewise.

    Returns:
        How values were packed in the files that are kept otherwise, see :attr:`StoredTensor.packing`.

    Raises:
        WeightError: a tensor is missing, left over, of another shape, in two files, or not readable.
    """
    wanted = _match(destinations, files, iter_weights(files, stacks, fp8), ignore, twins or {})
    total = sum(stored.nbytes for stored in wanted.values())
    done = 0
    progress(done, total)
    converted = set[str]()
    with torch.no_grad():
        for name, stored in wanted.items():
            if not _copy(stored, destinations[name]) and stored.packing is not None:
                converted.add(stored.packing)
            done += stored.nbytes
            progress(done, total)
    return sorted(converted)


def _copy(stored: StoredTensor, destination: Destination) -> bool:
    """Copies a tensor; tells whether it is kept in the very blocks of its file."""
    if _copy_blocks(stored, destination):
        return True
    kept, extent = destination, None
    if isinstance(destination, Part):
        kept, extent = destination.destination, destination.extent
    if not isinstance(kept, torch.Tensor) or kept.dim() != 2 or len(kept) < _TABLE_ROWS or (extent and extent.dim):
        kept.copy_(stored.read(extent))
        return False
    first, step = extent.start if extent else 0, max(1, _COPIED_ELEMENTS // kept.shape[1])
    for start in range(0, len(kept), step):
        rows = kept[start : start + step]
        rows.copy_(stored.read(Extent(0, first + start, first + start + len(rows))))
    return False


def _copy_blocks(stored: StoredTensor, destination: Destination) -> bool:
    """Copies rows of blocks as they are; False where there are none, or the destination does not take them so."""
    name, read = stored.packing, stored.blocks
    places = [] if name is None or read is None else block_places(destination)
    if name is None or read is None or not places or not all(place.takes(name) for place in places):
        return False
    for place, rows in block_parts(destination, read()):
        place.copy_blocks(name, rows)
    return True


def _match(
    destinations: Mapping[str, Destination],
    files: Sequence[Path],
    stored_tensors: Iterable[StoredTensor],
    ignore: Callable[[str], bool],
    twins: Mapping[str, Sequence[str]],
) -> dict[str, StoredTensor]:
    """The stored tensor for every destination."""
    in_files: dict[str, StoredTensor] = {}
    for stored in stored_tensors:
        if stored.name in in_files and not ignore(stored.name):
            raise WeightError(f"{stored.file}: tensor {stored.name!r} is also in {in_files[stored.name].file}")
        in_files[stored.name] = stored
    found = {name: stored for name, stored in in_files.items() if name in destinations}
    for name, others in twins.items():
        twin = next((other for other in others if other in in_files), None)
        if name not in found and twin is not None:
            found[name] = in_files[twin]
    left_over = [stored for name, stored in in_files.items() if name not in destinations and not ignore(name)]
    where = ", ".join(map(str, files[:_NAMES_SHOWN])) + (", …" if len(files) > _NAMES_SHOWN else "")
    missing = [name for name in destinations if name not in found]
    if missing:
        raise WeightError(f"{where}: {_listed(missing)} missing")
    if left_over:
        names = _listed([stored.name for stored in left_over])
        raise WeightError(f"{left_over[0].file}: {names} left over: the model has no place for it")
    for name, stored in found.items():
        expected = tuple(destinations[name].shape)
        if stored.shape != expected:
            raise WeightError(
                f"{stored.file}: tensor {stored.name!r} has shape {stored.shape}, the model expects {expected}"
            )
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{noun} {shown} and {more} more" if more > 0 else f"{noun} {shown}"
