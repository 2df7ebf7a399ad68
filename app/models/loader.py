"""Copies the tensors of safetensors and GGUF files into a model, every one accounted for.

Nothing here unpickles: other formats are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.models.checkpoint import WeightError, is_gguf, read_safetensors_header
from app.quant.destination import Destination, Extent, Part

__all__ = ["StoredTensor", "WeightError", "iter_weights", "load_weights"]

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_NAMES_SHOWN: Final = 5


class Read(Protocol):
    """Reads a tensor from its file, or an extent of it and little more."""

    def __call__(self, extent: Extent | None = None, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor still on disk."""

    name: str
    """As in a Hugging Face checkpoint, e.g. ``model.layers.0.self_attn.q_proj.weight``."""
    file: Path
    shape: tuple[int, ...]
    nbytes: int
    """In the file."""
    read: Read
    """Reads it: as stored from safetensors, fp32 from GGUF and where it is quantised. Raises :class:`WeightError`."""


def iter_weights(files: Sequence[Path]) -> Iterator[StoredTensor]:
    """Lists the tensors of ``files`` (safetensors or GGUF); headers are checked, data is not yet read.

    A GGUF file is known by its first bytes, whatever it is called.

    Raises:
        WeightError: another format, or a file that is unreadable, truncated or malformed.
    """
    for file in files:
        suffix = file.suffix.lower()
        if suffix == ".gguf" or is_gguf(file):
            yield from _gguf(file)
        elif suffix == ".safetensors":
            yield from _safetensors(file)
        else:
            raise WeightError(f"{file}: only .safetensors and .gguf files are read")


def load_weights(
    destinations: Mapping[str, Destination],
    files: Sequence[Path],
    *,
    ignore: Callable[[str], bool],
    progress: Callable[[int, int], None],
    twins: Mapping[str, str] | None = None,
) -> None:
    """Copies every tensor of ``files`` into the destination of its name, which keeps it in its own format.

    Names and shapes are checked before the first copy. One tensor at a time is in memory beside the destinations.

    Args:
        destinations: checkpoint name -> where it goes (a view of a tensor, or what quantises it).
        ignore: tells which left-over names are no error (tied or computed tensors).
        progress: called with bytes of the files that are done and in all.
        twins: names of destinations -> tensors that go there where the files lack the first (tied tensors).

    Raises:
        WeightError: a tensor is missing, left over, of another shape, in two files, or not readable.
    """
    wanted = _match(destinations, files, ignore, twins or {})
    total = sum(stored.nbytes for stored in wanted.values())
    done = 0
    progress(done, total)
    with torch.no_grad():
        for name, stored in wanted.items():
            destination = destinations[name]
            if isinstance(destination, Part):
                destination.destination.copy_(stored.read(destination.extent))
            else:
                destination.copy_(stored.read())
            done += stored.nbytes
            progress(done, total)


def _match(
    destinations: Mapping[str, Destination],
    files: Sequence[Path],
    ignore: Callable[[str], bool],
    twins: Mapping[str, str],
) -> dict[str, StoredTensor]:
    """The tensor of every destination."""
    in_files: dict[str, StoredTensor] = {}
    for stored in iter_weights(files):
        if stored.name in in_files and not ignore(stored.name):
            raise WeightError(f"{stored.file}: tensor {stored.name!r} is also in {in_files[stored.name].file}")
        in_files[stored.name] = stored
    found = {name: stored for name, stored in in_files.items() if name in destinations}
    for name, twin in twins.items():
        if name not in found and twin in in_files:
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


def _safetensors(file: Path) -> Iterator[StoredTensor]:
    entries = {entry.name: entry for entry in read_safetensors_header(file)}
    scales = {f"{name}_scale" for name, entry in entries.items() if entry.dtype == "I8"}
    try:
        handle = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as e:
        raise WeightError(f"{file}: {e}") from None

    def get(name: str, extent: Extent | None) -> Tensor:
        try:
            if extent is None:
                tensor: Tensor = handle.get_tensor(name)  # type: ignore[no-untyped-call]
            else:
                part = slice(extent.start, extent.stop)
                stored = handle.get_slice(name)  # type: ignore[no-untyped-call]
                tensor = stored[part] if extent.dim == 0 else stored[:, part]
        except (SafetensorError, OSError) as e:
            raise WeightError(f"{file}: tensor {name!r}: {e}") from None
        return tensor

    def read(name: str, extent: Extent | None = None) -> Tensor:
        entry, scale = entries[name], entries.get(f"{name}_scale")
        if entry.dtype in _FLOATS:
            return get(name, extent)
        if entry.dtype != "I8" or scale is None:
            raise WeightError(f"{file}: tensor {name!r} has type {entry.dtype} and no scale; it cannot be read")
        if scale.dtype not in _FLOATS or scale.shape not in (entry.shape[:1], (*entry.shape[:1], 1)):
            raise WeightError(f"{file}: tensor {scale.name!r} is no scale for each row of {name!r}")
        # Quantised again, whole rows give the same int8 values: the largest of each is 127 times its scale. An extent
        # of their columns may not hold that one.
        rows = extent if extent is not None and extent.dim == 0 else None
        return get(name, extent).float() * get(scale.name, rows).float().view(-1, 1)

    for entry in entries.values():
        if entry.name not in scales:
            yield StoredTensor(entry.name, file, entry.shape, entry.nbytes, partial(read, entry.name))


def _gguf(file: Path) -> Iterator[StoredTensor]:
    # Here, because the format's package is slow to import, not there on a bare GPU box, and often not needed.
    from app.models import gguf
    from app.models.gguf_header import read_gguf_header

    header = read_gguf_header(file)
    for entry in header.tensors.values():
        if entry.name != gguf.ROPE_FACTORS:
            name = gguf.checkpoint_name(entry.name)
            yield StoredTensor(name, file, entry.shape, entry.nbytes, partial(gguf.read_tensor, header, entry))
