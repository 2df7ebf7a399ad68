"""The directory of pulled models: who may touch it, and how a model gets into it whole or not at all.

<home>/models/<entry>/   manifest.json and the model's files
<home>/building/<entry>/ a model being pulled; renamed into ``models`` when it is complete
<home>/locks/<entry>     held while that entry is written
<home>/checked/          an empty file for each tokenizer of a directory elsewhere that was tried and is good
<home>/prefix-cache/     KV blocks that outlive a server (--prefix-cache-disk)
<home>/packed/           weights in the layout of the engine's native kernels, made anew whenever they are missing
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from app.store.errors import StoreError
from app.store.progress import ProgressReporter

FORMAT = 1
"""Version of an entry's layout. Entries of another version are pulled again."""
MANIFEST = "manifest.json"
_ENTRY_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_RETIRED = "~"
"""Suffix of an entry that is being deleted. No entry's name has this character."""
_ROOMS = ("models", "building", "locks", "checked", "packed", "prefix-cache")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Description of an entry, kept in it as ``manifest.json``."""

    name: str
    """The model's name for people and clients."""
    source: str
    """Where it came from: requirement of a package, path, or hub id."""
    weights: list[str] = []
    """Weight files: in the entry, or absolute paths of files that are used where they are."""
    revision: str | None = None
    """Commit of a hub repository."""
    licence: str | None = None
    """Licence of the model, where it is known."""
    format: int = FORMAT
    """Version of the entry's layout."""


def default_home() -> Path:
    """``TUILI_HOME``, or ``tuili`` in the platform's cache directory."""
    if given := os.environ.get("TUILI_HOME"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tuili"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuili"


def slug(text: str) -> str:
    """``text`` as part of an entry's name; never with ``--``, which only a hub id's entry has."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)[:64].strip("-.")


class Store:
    """Pulled models under one directory, which is made (mode 0700) when something is first written to it."""

    def __init__(self, home: Path | None = None) -> None:
        """
        Raises:
            StoreError: no home is given and there is no home directory to put it in.
        """
        try:
            self.home = (home or default_home()).expanduser().absolute()
        except RuntimeError:  # no HOME, and no such user
            where = "this user has no home directory" if home is None else f"{home}: no such user"
            raise StoreError(f"{where}; set TUILI_HOME to a directory for models") from None

    @property
    def packed(self) -> Path:
        """Directory of the engine's packed weights."""
        return self.home / "packed"

    @property
    def prefix_cache(self) -> Path:
        """Directory of the prefix cache's blocks, unless a server was given another."""
        return self.home / "prefix-cache"

    def find(self, entry: str) -> tuple[Path, Manifest] | None:
        """An entry's directory and manifest, or None when it is absent or of an older format.

        Raises:
            StoreError: a name that is none, a home that others may write to, or a file that cannot be read.
        """
        directory = self._under("models", entry)
        self._check_home()
        file = directory / MANIFEST
        try:
            manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            return None  # of another format
        except OSError as e:
            raise StoreError(f"{file}: {e.strerror or e}") from None
        return (directory, manifest) if manifest.format == FORMAT else None

    def entries(self) -> Iterator[tuple[str, Manifest]]:
        """Every entry of the present format."""
        root = self.home / "models"
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            found = self.find(path.name) if _is_entry_name(path.name) else None
            if found is not None:
                yield path.name, found[1]

    def create(
        self, entry: str, build: Callable[[Path], Manifest], progress: ProgressReporter
    ) -> tuple[Path, Manifest]:
        """Finds an entry, or makes it: ``build`` fills the directory it is given, which then becomes the entry.

        An exception in ``build`` or the process's death leaves no entry. Of several processes one builds.

        Raises:
            StoreError: a name that is none, or a home that cannot be written or that others may write to.
        """
        found = self.find(entry)
        if found is not None:
            return found
        with self._lock(entry, progress):
            found = self.find(entry)  # another process may have been quicker
            return self._build(entry, build) if found is None else found

    def is_checked(self, key: str) -> bool:
        """Whether :meth:`mark_checked` was called with this key, 64 hexadecimal digits."""
        return self._under("checked", key).is_file()

    def mark_checked(self, key: str) -> None:
        """Remembers a key; in a home that cannot be written the check is made again next time."""
        with suppress(StoreError, OSError):
            self._make_home()
            self._under("checked", key).touch()

    def remove(self, entry: str, progress: ProgressReporter) -> None:
        """Deletes an entry, if it is there."""
        with self._lock(entry, progress):
            directory = self._under("models", entry)
            if directory.exists():
                self._retire(directory)

    @contextmanager
    def _lock(self, entry: str, progress: ProgressReporter) -> Iterator[None]:
        """Keeps other processes from writing this entry, and clears what killed ones left of any."""
        path = self._under("locks", entry)
        self._make_home()
        held = FileLock(path)
        try:
            held.acquire(timeout=0)
        except Timeout:
            with progress.task(f"Waiting for another process to finish {entry}"):
                held.acquire()
        try:
            self._sweep(entry)
            yield
        finally:
            held.release()

    def _build(self, entry: str, build: Callable[[Path], Manifest]) -> tuple[Path, Manifest]:
        directory = self._under("building", entry)
        directory.mkdir()
        try:
            manifest = build(directory)
            (directory / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
            _sync(directory)
            target = self._under("models", entry)
            if target.exists():
                self._retire(target)  # of another format
            directory.rename(target)
            _sync_directory(target.parent)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return target, manifest

    def _retire(self, directory: Path) -> None:
        # Renamed first, so that nobody meets an entry that is half deleted.
        old = self.home / "building" / f"{directory.name}{_RETIRED}"
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        shutil.rmtree(old)

    def _sweep(self, held: str) -> None:
        root = self.home / "building"
        for left in root.iterdir():
            entry = left.name.removesuffix(_RETIRED)
            if entry == held:
                shutil.rmtree(left, ignore_errors=True)
            elif _is_entry_name(entry):
                with suppress(Timeout), FileLock(self._under("locks", entry), timeout=0):
                    shutil.rmtree(left, ignore_errors=True)

    def _under(self, room: str, entry: str) -> Path:
        if not _is_entry_name(entry):
            raise StoreError(f"{entry!r} is no model name: 1 to 128 of A-Z a-z 0-9 . _ - are")
        return self.home / room / entry

    def _make_home(self) -> None:
        try:
            for directory in (self.home, *(self.home / room for room in _ROOMS)):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError(f"cannot make the model directory {self.home}: {e.strerror}") from None
        self._check_home()

    def _check_home(self) -> None:
        """Tightens a directory of ours to 0700; refuses one in which somebody else could plant models.

        One that holds other things too (a home directory, ``/tmp``) is not ours to close to others.
        """
        try:
            status = self.home.stat()
        except OSError:
            return  # nothing there to be trusted or not
        if not stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{self.home} is not a directory")
        if status.st_uid == os.geteuid():
            self._tighten(status.st_mode)
        elif status.st_uid != 0 or status.st_mode & _OTHERS_WRITE:
            raise StoreError(
                f"{self.home}: other users may write to it, so its models cannot be trusted; set TUILI_HOME"
            )

    def _tighten(self, mode: int) -> None:
        if stat.S_IMODE(mode) == 0o700:
            return
        try:
            if any(path.name not in _ROOMS for path in self.home.iterdir()):
                if mode & _OTHERS_WRITE:
                    raise StoreError(f"{self.home}: other users may write to it; set TUILI_HOME to a directory below")
                return
            self.home.chmod(0o700)
        except OSError as e:
            # A read-only mount is as good, unless others can write to it elsewhere.
            if mode & _OTHERS_WRITE:
                raise StoreError(
                    f"{self.home}: other users may write to it, and its mode stays: {e.strerror}"
                ) from None


def _is_entry_name(name: str) -> bool:
    return _ENTRY_NAME.fullmatch(name) is not None and not name.startswith(".")


def _sync(directory: Path) -> None:
    """Has everything on the disk before a rename makes it the entry: a power cut must not leave empty files there."""
    for root, _, names in os.walk(directory):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(root))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
