"""Packed weights in the store: what they take of the disk, of which model they are, and how they are freed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from app.quant.packed_file import read_header
from app.store.errors import StoreError
from app.store.home import Store


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file of packed weights."""

    path: Path
    nbytes: int
    sources: tuple[str, ...]
    """Paths of the checkpoint that was packed; none are known of files that an older version wrote."""

    def is_of(self, weights: Iterable[Path]) -> bool:
        """Whether it was made of a model's files."""
        return not {str(file) for file in weights}.isdisjoint(self.sources)


def packed_files(store: Store) -> list[PackedFile]:
    """All files of packed weights, by the path of what they were made of."""
    found = []
    for path in store.packed.glob("*.packed"):
        with suppress(FileNotFoundError):
            found.append(PackedFile(path, path.stat().st_size, _sources(path)))
    return sorted(found, key=lambda file: (file.sources, file.path))


def free(files: Sequence[PackedFile]) -> int:
    """Deletes files of packed weights; a server that runs has read its own, and the next start packs again.

    Returns:
        Bytes that were freed.

    Raises:
        StoreError: one cannot be deleted.
    """
    for file in files:
        try:
            file.path.unlink(missing_ok=True)
        except OSError as e:
            raise StoreError(f"{file.path}: {e.strerror or e}") from None
    return sum(file.nbytes for file in files)


def free_partial(store: Store) -> int:
    """Deletes what processes that were killed left half written; returns its bytes."""
    freed = 0
    for path in store.packed.glob("*.partial"):
        # Its writer holds the lock.
        with suppress(Timeout, OSError), FileLock(path.with_suffix(".lock"), timeout=0):
            nbytes = path.stat().st_size
            path.unlink()
            freed += nbytes
    return freed


def _sources(path: Path) -> tuple[str, ...]:
    try:
        with FileIO(path) as file:
            return tuple(read_header(file).sources)
    except (OSError, ValueError):
        return ()
