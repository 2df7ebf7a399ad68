"""The file of one record: a head that says whose it is and how long, then the record.

Nothing of a file is believed: what is not exactly the file that was asked for is damaged.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

_MAGIC = b"tuilikv1"
_HEAD = struct.Struct("<8s24sQI")
"""Magic, key of the record, bytes of the record, CRC-32 of key and record."""
KEY_BYTES = 24
"""Bytes of a record's key."""
HEAD_BYTES = _HEAD.size
"""Bytes of a file before its record."""


class DamagedFileError(ValueError):
    """A file is not the whole and unchanged record that was asked for."""


def write_file(path: Path, partial: Path, key: bytes, record: bytes) -> None:
    """Writes a record whole, or not at all, readable by its owner alone.

    Args:
        partial: a path that nobody else writes to, on the same file system.

    Raises:
        OSError: it cannot be written.
    """
    head = _HEAD.pack(_MAGIC, key, len(record), _checksum(key, record))
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(head)
            file.write(record)
        try:
            partial.replace(path)
        except FileNotFoundError:  # the first of its folder, or somebody cleared the directory
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_file(path: Path, key: bytes, nbytes: int) -> bytes:
    """Reads the record of a key.

    Args:
        nbytes: bytes of the record.

    Raises:
        DamagedFileError: the file is another one, or not as it was written.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != HEAD_BYTES + nbytes:
            raise DamagedFileError("not of its size")
        head = file.read(HEAD_BYTES)
        record = _read_all(file.fileno(), nbytes)
    if len(head) != HEAD_BYTES or _HEAD.unpack(head) != (_MAGIC, key, nbytes, _checksum(key, record)):
        raise DamagedFileError("another record, or a checksum that does not match")
    return record


def _read_all(descriptor: int, nbytes: int) -> bytes:
    """So many bytes, or fewer where the file ends before."""
    record = os.read(descriptor, nbytes)
    while len(record) < nbytes and (more := os.read(descriptor, nbytes - len(record))):
        record += more
    return record


def _checksum(key: bytes, record: bytes) -> int:
    return zlib.crc32(record, zlib.crc32(key))
