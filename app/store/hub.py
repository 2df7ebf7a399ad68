"""Downloads a model from a hub (``HF_ENDPOINT``, ``HF_TOKEN``, … as its own client reads them)."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.store.errors import StoreError
from app.store.files import TEMPLATES, find_weights, read_config
from app.store.progress import Advance, ProgressReporter

_ID = re.compile(r"(?P<org>[A-Za-z0-9._-]+)/(?P<repo>[A-Za-z0-9._-]+)(?:@(?P<revision>[A-Za-z0-9._/-]+))?")
_WANTED = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
)
_WEIGHTS = ".safetensors"
_UNWANTED = ("consolidated*", "adapter*")
"""The same weights once more in another layout, and weights that are no model by themselves."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class HubId:
    """``org/repo`` or ``org/repo@revision``."""

    repo: str
    revision: str | None

    @property
    def entry(self) -> str:
        """Name of the repository's entry in the store."""
        parts = [*self.repo.split("/"), *((self.revision or "").split("/") if self.revision else [])]
        return "--".join(parts)

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse_hub_id(text: str) -> HubId | None:
    """Reads a hub id; None when ``text`` is none. A hub has no ids with ``--`` or ``..`` in them."""
    match = _ID.fullmatch(text)
    if match is None or "--" in text or ".." in text or text.startswith("."):
        return None
    return HubId(f"{match['org']}/{match['repo']}", match["revision"])


def at_revision(name: str, revision: str | None) -> str:
    """The name of a model with the revision that a setting asks for.

    Raises:
        StoreError: only a hub's repositories have revisions, and this one is named with another already.
    """
    if revision is None:
        return name
    hub_id = parse_hub_id(name)
    if hub_id is None or Path(name).exists():
        raise StoreError(f"revision = {revision!r}: {name!r} is no hub id, which alone has revisions")
    if hub_id.revision not in (None, revision):
        raise StoreError(f"revision = {revision!r}: {name!r} names another one")
    asked = f"{hub_id.repo}@{revision}"
    if parse_hub_id(asked) is None:
        raise StoreError(f"revision = {revision!r} is no branch, tag or commit")
    return asked


def download(hub_id: HubId, directory: Path, progress: ProgressReporter, via: str | None = None) -> str:
    """Brings weights, configs and tokenizer files into ``directory``; returns the commit they are of.

    They are downloaded to the cache of the hub's client (``HF_HOME``, ``HF_HUB_CACHE``), where an interrupted download
    goes on and which other programs share. Of weights ``directory`` gets hard links, or links where that cannot be.

    Args:
        via: the library that is to compute the model; None: tuili does.

    Raises:
        StoreError: no such repository or revision, no access, no connection, or no safetensors weights.
    """
    # Imported here because only this needs it, and it takes a while.
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        snapshot = _snapshot(hub_id, progress, via)
        _take_over(snapshot, directory)
    except StoreError:
        raise
    except Exception as e:
        raise _error(hub_id, e) from e
    return snapshot.name


def _snapshot(hub_id: HubId, progress: ProgressReporter, via: str | None) -> Path:
    """Directory of a snapshot in the cache of the hub's client, which holds all that is wanted of it.

    When the hub cannot be asked, or refuses, that is what the cache holds already, as the client itself has it.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        with progress.task(f"Looking up {hub_id}"):
            sizes = _look_up(hub_id)
    except (StoreError, RevisionNotFoundError):
        raise
    except Exception as e:
        cached = _cached(hub_id)
        if cached is None:
            raise
        try:
            find_weights(cached)
        except StoreError as missing:
            raise StoreError(f"{_error(hub_id, e)} ({missing})") from e
        with progress.task(f"Taking {hub_id} from the cache of the hub's client, as the hub cannot be asked"):
            return cached
    return _fetch(hub_id, sizes, progress, via)


def _look_up(hub_id: HubId) -> dict[str, int]:
    """Names and sizes of the files that are wanted."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id.repo, revision=hub_id.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_wanted(file.rfilename)}
    _check_weights(hub_id, sizes, [file.rfilename for file in info.siblings or ()])
    return sizes


def _cached(hub_id: HubId) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id.repo, "config.json", revision=hub_id.revision)
    return Path(config).parent if isinstance(config, str) else None


def _fetch(hub_id: HubId, sizes: Mapping[str, int], progress: ProgressReporter, via: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    # Before gigabytes of weights, what says whether they can be used. The revision goes by its own name: under its
    # commit alone nobody would find it offline.
    config = Path(hf_hub_download(hub_id.repo, "config.json", revision=hub_id.revision))
    read_config(config.parent, via)
    blobs, total = config.parents[2] / "blobs", sum(sizes.values())
    with progress.task(f"Downloading {hub_id}", total) as advance, _watch(blobs, total, advance):
        return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, allow_patterns=list(sizes)))


def _take_over(snapshot: Path, directory: Path) -> None:
    """Puts what is wanted of a snapshot into a directory."""
    names = (file.relative_to(snapshot).as_posix() for file in sorted(snapshot.rglob("*")) if file.is_file())
    for name in filter(_is_wanted, names):
        source, target = (snapshot / name).resolve(), directory / name
        target.parent.mkdir(exist_ok=True)
        if not name.endswith(_WEIGHTS):
            shutil.copyfile(source, target)
            continue
        try:
            os.link(source, target)
        except OSError:  # on another disk, or not ours
            target.symlink_to(source)


def _is_wanted(name: str) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    directory, _, file = name.rpartition("/")
    if directory:
        return directory == TEMPLATES and file.endswith(".jinja")
    return matches(_WANTED) and not matches(_UNWANTED)


def _check_weights(hub_id: HubId, wanted: dict[str, int], everything: list[str]) -> None:
    if any(name.endswith(_WEIGHTS) for name in wanted):
        return
    pickled = [name for name in everything if name.endswith((".bin", ".pt", ".pth"))]
    instead = f" (only {pickled[0]}, a pickled file, which is never opened)" if pickled else ""
    raise StoreError(f"{hub_id} has no safetensors weights{instead}")


@contextmanager
def _watch(directory: Path, total: int, advance: Advance) -> Iterator[None]:
    """Reports the bytes that appear in ``directory``: true for every way in which the client may download."""
    done, before = threading.Event(), _bytes_in(directory)

    def report() -> None:
        reported = 0
        while not done.wait(_POLL_SECONDS):
            present = min(total, _bytes_in(directory) - before)
            advance(max(0, present - reported))
            reported = max(reported, present)

    thread = threading.Thread(target=report, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _bytes_in(directory: Path) -> int:
    size = 0
    for path in directory.glob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # renamed between the two calls
    return size


def _error(hub_id: HubId, error: Exception) -> StoreError:
    return StoreError(f"cannot fetch {hub_id}: {_reason(error)}")


def _reason(error: Exception) -> str:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    sent = get_token() is not None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
    match error:
        case OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not hold all of it"
        case RevisionNotFoundError():
            return "the repository has no such revision"
        case GatedRepoError() if sent:
            return "access has to be granted on the hub to the account whose token is sent (HF_TOKEN)"
        case GatedRepoError():
            return f"access has to be granted on the hub first; then set HF_TOKEN{_withheld()}"
        case RepositoryNotFoundError() if sent:
            return "no such repository, or a private one that the token sent (HF_TOKEN) gives no access to"
        case RepositoryNotFoundError():
            return f"no such repository, or a private one, which needs HF_TOKEN{_withheld()}"
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"the hub refuses the token that is sent (HF_TOKEN): {error.response.status_code}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _withheld() -> str:
    """What keeps a token from being sent."""
    from huggingface_hub import constants

    return ", and HF_HUB_DISABLE_IMPLICIT_TOKEN not" if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else ""
