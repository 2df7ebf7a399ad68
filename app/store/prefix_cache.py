"""KV blocks that servers kept in the store: what they take of the disk, and how they are freed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from app.store.errors import StoreError
from app.store.home import Store


def block_bytes(store: Store) -> int:
    """Bytes of all blocks in the store's own directory of them."""
    return sum(nbytes for _, nbytes in _files(store))


def free_blocks(store: Store) -> int:
    """Deletes these blocks; a server that runs computes them again.

    Returns:
        Bytes that were freed.

    Raises:
        StoreError: one cannot be deleted.
    """
    freed = 0
    for file, nbytes in _files(store):
        try:
            file.unlink(missing_ok=True)
        except OSError as e:
            raise StoreError(f"{file}: {e.strerror or e}") from None
        freed += nbytes
    return freed


def _files(store: Store) -> list[tuple[Path, int]]:
    """Files of blocks, and their sizes; those that are being written are left to their writer."""
    found = []
    for file in store.prefix_cache.glob("[0-9a-f][0-9a-f]/*.kv"):
        with suppress(FileNotFoundError):
            found.append((file, file.stat().st_size))
    return found
