"""Packed weights on the disk: a later start reads them straight into place instead of packing them again.

A file holds a header of JSON, then every buffer of the model as it lies in memory. It belongs to exact source files
(path, size, time of change), a format, a version of the layout and what a config says of the form in which weights are
kept; anything else in it is as good as no file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from app.kernels.linear.pack import LAYOUT
from app.quant.destination import Adapted, Destination, Elsewhere, Interleaved, Kept, Part, Tee, View
from app.quant.packed_file import PackedBuffer, PackedHeader, read_header

_log = logging.getLogger(__name__)


class PackedCache:
    """The packed weights of one model in one format.

    Args:
        directory: of all such files; made when first written to.
        sources: the checkpoint's files.
        weight_format: name of the format.
    """

    def __init__(self, directory: Path, sources: Sequence[Path], weight_format: str) -> None:
        self._format, self._sources = weight_format, [str(file) for file in sources]
        facts = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in sources]
        self._identity = _digest((LAYOUT, weight_format, facts))
        # Named after what does not change with the sources' contents: a newer checkpoint takes the older one's place.
        self.path = directory / f"{_digest((weight_format, self._sources))[:32]}.packed"

    def restore(self, destinations: Mapping[str, Destination]) -> bool:
        """Reads all weights; False when there is no such file or it is not of these weights, whatever was read."""
        buffers = _buffers(destinations.values())
        try:
            with FileIO(self.path) as file:
                return self._read(file, self._identity_of(destinations), buffers)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be used, the weights are packed again: %s", self.path, error)
            return False

    def _identity_of(self, destinations: Mapping[str, Destination]) -> str:
        """Identity of these weights: those of a config with other parameters are others."""
        given = {name: found for name, place in destinations.items() if (found := list(_parameters_of(place)))}
        return _digest((self._identity, given)) if given else self._identity

    def _read(self, file: FileIO, identity: str, buffers: Sequence[Tensor]) -> bool:
        header = read_header(file)
        if header.identity != identity:
            return False
        if [entry.nbytes for entry in header.buffers] != [buffer.nbytes for buffer in buffers]:
            raise ValueError("made for a model of another shape")
        for entry, buffer in zip(header.buffers, buffers, strict=True):
            view = _bytes(buffer)
            if file.readinto(view) != entry.nbytes:
                raise ValueError("truncated")
            if zlib.crc32(view) != entry.crc32:
                raise ValueError("damaged: a checksum does not match")
        return True

    def save(self, destinations: Mapping[str, Destination]) -> None:
        """Writes all weights, whole or not at all. What goes wrong is logged: the server runs without."""
        from filelock import FileLock, Timeout  # here, because a start from the cache needs none

        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=0):
                self._write(self._identity_of(destinations), _buffers(destinations.values()))
        except Timeout:
            _log.debug("%s is being written by another process", self.path)
        except OSError as error:
            _log.warning("%s could not be written, the next start packs the weights again: %s", self.path, error)

    def _write(self, identity: str, buffers: Sequence[Tensor]) -> None:
        entries = [PackedBuffer(buffer.nbytes, zlib.crc32(_bytes(buffer))) for buffer in buffers]
        header = PackedHeader(identity, entries, self._sources, self._format)
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb", buffering=0) as file:
                file.write(header.to_bytes())
                for buffer in buffers:
                    _write_all(file, _bytes(buffer))
            partial.replace(self.path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        written = os.write(file.fileno(), data)
        data = data[written:]


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _bytes(buffer: Tensor) -> memoryview:
    return buffer.view(-1).view(torch.uint8).numpy().data


def _buffers(destinations: Iterable[Destination]) -> list[Tensor]:
    """The memory that all destinations write to, each piece once, in a fixed order."""
    found: dict[int, Tensor] = {}
    for destination in destinations:
        for buffer in _buffers_of(destination):
            found.setdefault(buffer.data_ptr(), buffer)
    return list(found.values())


def _buffers_of(destination: Destination) -> Iterable[Tensor]:
    match destination:
        case Tensor():
            yield destination
        case View():
            yield destination.memory
        case Tee() | Interleaved():
            for part in destination.parts:
                yield from _buffers_of(part)
        case Part() | Adapted():
            yield from _buffers_of(destination.destination)
        case Elsewhere():
            pass
        case Kept():
            yield from destination.buffers()
        case _:
            raise TypeError(f"{type(destination).__name__} is not kept in packed form")


def _parameters_of(destination: Destination) -> Iterable[float]:
    """Those of the forms that a tensor is brought into on its way."""
    match destination:
        case Tee() | Interleaved():
            if isinstance(destination, Interleaved) and destination.groups > 1:
                yield destination.groups
            for part in destination.parts:
                yield from _parameters_of(part)
        case Part():
            yield from _parameters_of(destination.destination)
        case Adapted():
            yield from destination.parameters
            yield from _parameters_of(destination.destination)
