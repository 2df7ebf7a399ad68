"""The directory of records on disk: who may have it, its key, what is in it.

<directory>/key          32 random bytes: files are named by hashes under this key
<directory>/<2 hex>/     <48 hex>.kv, a record each; the first two digits are the folder's
<directory>/partial/     records that are being written

Any number of processes may share one. A file appears and disappears whole, so each of them sees a record or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import NamedTuple

from app.engine.kv.tiers.block_file import KEY_BYTES

_FILE = re.compile(r"([0-9a-f]{2})([0-9a-f]{46})\.kv")
_OURS = re.compile(r"key|partial|[0-9a-f]{2}")
_SECRET_BYTES = 32
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_ABANDONED_SECONDS = 600.0
"""Age at which a record that is being written never will be: its writer was killed."""


class DirectoryError(ValueError):
    """A directory that cannot be trusted; one line that says why."""


class Found(NamedTuple):
    """A file of the directory."""

    modified: int
    """Time of its last use, in nanoseconds."""
    key: bytes
    nbytes: int


class BlockDirectory:
    """Files of records, by the keys of the records.

    Args:
        path: made if it is missing, and closed to other users.

    Raises:
        DirectoryError: it is another user's.
        OSError: it cannot be made or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path / "partial"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(path)
        self._partial.mkdir(mode=0o700, exist_ok=True)
        self._num_written = 0
        self._secret = self._read_secret()

    def key_of(self, name: bytes) -> bytes:
        """Key of the record with a name."""
        return hashlib.blake2b(name, digest_size=KEY_BYTES, key=self._secret).digest()

    def file_of(self, key: bytes) -> Path:
        """Path of a record's file."""
        digits = key.hex()
        return self.path / digits[:2] / f"{digits}.kv"

    def partial_file(self) -> Path:
        """A path to write a file at that nobody else has."""
        self._num_written += 1
        return self._partial / f"{os.getpid()}-{id(self):x}-{self._num_written}"

    def scan(self) -> list[Found]:
        """All records, the least recently used first. Clears what killed writers left. Other files are left alone."""
        found = []
        for folder in os.scandir(self.path):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(folder.path):
                match = _FILE.fullmatch(file.name)
                if match is None or match[1] != folder.name:
                    continue
                try:
                    status = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append(Found(status.st_mtime_ns, bytes.fromhex(match[1] + match[2]), status.st_size))
        self._clear_abandoned()
        return sorted(found)

    def _clear_abandoned(self) -> None:
        for file in self._partial.iterdir():
            try:
                if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                    file.unlink()
            except FileNotFoundError:
                continue

    def _read_secret(self) -> bytes:
        """The key of the directory, made by the first process that comes; a file that is none is replaced."""
        path = self.path / "key"
        try:
            secret = path.read_bytes()
        except FileNotFoundError:
            return self._new_secret(path)
        if len(secret) == _SECRET_BYTES:
            return secret
        path.unlink()
        return self._new_secret(path)

    def _new_secret(self, path: Path) -> bytes:
        partial = self.partial_file()
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(partial, path)
        partial.unlink()
        return path.read_bytes()


def _check(path: Path) -> None:
    """Closes a directory of ours to other users. Raises :class:`DirectoryError` where it is not ours alone."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise DirectoryError(f"{path}: it is another user's, so what lies there cannot be trusted")
    if not status.st_mode & _OTHERS:
        return
    if any(not _OURS.fullmatch(entry.name) for entry in path.iterdir()):
        raise DirectoryError(
            f"{path}: other users may look into it, and it holds other things; name a directory of its own"
        )
    path.chmod(0o700)
