"""The head of a file of packed weights: what it holds and of which model (torch-free)."""

from __future__ import annotations

from io import FileIO

import msgspec

MAGIC = b"tuili packed\n"
_MAX_HEADER = 1 << 24


class PackedBuffer(msgspec.Struct, array_like=True, frozen=True):
    """One piece of memory."""

    nbytes: int
    crc32: int


class PackedHeader(msgspec.Struct, frozen=True):
    """JSON at the beginning of a file of packed weights; the buffers follow it."""

    identity: str
    """Digest of all that the weights depend on."""
    buffers: list[PackedBuffer]
    sources: list[str] = []
    """Paths of the checkpoint's files, for people: the identity alone counts. Older files name none."""
    weight_format: str = ""
    """Name of the format, for people."""

    def to_bytes(self) -> bytes:
        """The head of a file."""
        header = msgspec.json.encode(self)
        return MAGIC + len(header).to_bytes(8, "little") + header


def read_header(file: FileIO) -> PackedHeader:
    """Reads the head of a file; its first buffer follows.

    Raises:
        ValueError: it is no such file.
        OSError: it cannot be read.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("not a file of packed weights")
    size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError("bad header")
    try:
        return msgspec.json.decode(file.read(size), type=PackedHeader)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
