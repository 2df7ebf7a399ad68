"""What lies in a store, for people: models by the names they know them by, with what they take of the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.nearest import did_you_mean
from app.store.errors import ModelNotFound, StoreError
from app.store.home import Manifest, Store
from app.store.hub_id import parse_hub_id


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model of the store."""

    entry: str
    directory: Path
    manifest: Manifest

    @property
    def weights(self) -> list[Path]:
        """Its files of weights, wherever they lie."""
        return [self.directory / file for file in self.manifest.weights]

    @property
    def elsewhere(self) -> list[Path]:
        """Those of them that are used where they are."""
        return [file for file in self.weights if not file.is_relative_to(self.directory)]

    def nbytes(self) -> int:
        """Bytes of its files, those elsewhere included. Raises :class:`FileNotFoundError` when one is gone."""
        files = {path for path in self.directory.rglob("*") if path.is_file()} | set(self.weights)
        return sum(path.stat().st_size for path in files)

    def own_nbytes(self) -> int:
        """Bytes that the disk has back when it is deleted: none of files that are linked from elsewhere as well."""
        status = [path.lstat() for path in self.directory.rglob("*") if path.is_file()]
        return sum(each.st_size for each in status if each.st_nlink == 1)


def pulled(store: Store) -> list[Pulled]:
    """All models of a store."""
    return [Pulled(entry, store.home / "models" / entry, manifest) for entry, manifest in store.entries()]


def find_pulled(store: Store, name: str) -> list[Pulled]:
    """The entries of a model, by its name, hub id, source or the name of its directory in the store.

    Raises:
        ModelNotFound: there is none; names those that are near.
        StoreError: the name is of several models.
    """
    hub_id, everything = parse_hub_id(name), pulled(store)
    exact = {name, str(Path(name).absolute())} | ({hub_id.entry} if hub_id else set())
    found = [each for each in everything if not exact.isdisjoint((each.manifest.source, each.entry))]
    if found:
        return found
    found = [each for each in everything if each.manifest.name == name]
    sources = sorted({each.manifest.source for each in found})
    if len(sources) > 1:
        raise StoreError(f"{name!r} is the name of several models; name one by its source: {', '.join(sources)}")
    if not found:
        hint = did_you_mean(name, [each.manifest.name for each in everything])
        raise ModelNotFound(f"no model {name!r} in {store.home}{hint}; tuili list shows those that are")
    return found
