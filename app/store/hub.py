"""Downloads a model from a hub (``HF_ENDPOINT``, ``HF_TOKEN``, … as its own client reads them)."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.store.errors import StoreError
from app.store.files import find_weights, read_config
from app.store.hub_files import WEIGHTS, is_gguf, wanted_files
from app.store.hub_id import HubId
from app.store.progress import Advance, ProgressReporter

_POLL_SECONDS = 0.2


def download(hub_id: HubId, directory: Path, progress: ProgressReporter, via: str | None = None) -> str:
    """Brings weights, configs and tokenizer files into ``directory``; returns the commit they are of.

    They are downloaded to the cache of the hub's client (``HF_HOME``, ``HF_HUB_CACHE``), where an interrupted download
    goes on and which other programs share. Of weights ``directory`` gets hard links, or links where that cannot be.

    Args:
        via: the library that is to compute the model; None: tuili does.

    Raises:
        StoreError: no such repository or revision, no access, no connection, or no weights that can be used.
    """
    # Imported here because only this needs it, and it takes a while.
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        snapshot, names = _snapshot(hub_id, progress, via)
        _take_over(snapshot, names, directory)
    except StoreError:
        raise
    except Exception as e:
        raise _error(hub_id, e) from e
    return snapshot.name


def _snapshot(hub_id: HubId, progress: ProgressReporter, via: str | None) -> tuple[Path, list[str]]:
    """Directory of a snapshot in the cache of the hub's client, and the files of it that are wanted.

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
            names = wanted_files(hub_id, _files_in(cached))
            if not any(map(is_gguf, names)):
                find_weights(cached)
        except StoreError as missing:
            raise StoreError(f"{_error(hub_id, e)} ({missing})") from e
        with progress.task(f"Taking {hub_id} from the cache of the hub's client, as the hub cannot be asked"):
            return cached, names
    return _fetch(hub_id, sizes, progress, via), list(sizes)


def _look_up(hub_id: HubId) -> dict[str, int]:
    """Names and sizes of the files that are wanted."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id.repo, revision=hub_id.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return {name: sizes[name] for name in wanted_files(hub_id, sizes)}


def _cached(hub_id: HubId) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # Newer versions of the client refuse a snapshot that lacks what the patterns name.
    few = ["config.json"]
    try:
        return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, local_files_only=True, allow_patterns=few))
    except LocalEntryNotFoundError:
        return None


def _files_in(snapshot: Path) -> list[str]:
    return [file.relative_to(snapshot).as_posix() for file in sorted(snapshot.rglob("*")) if file.is_file()]


def _fetch(hub_id: HubId, sizes: Mapping[str, int], progress: ProgressReporter, via: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    if "config.json" in sizes:
        # Before gigabytes of weights, what says whether they can be used. The revision goes by its own name: under its
        # commit alone nobody would find it offline.
        config = Path(hf_hub_download(hub_id.repo, "config.json", revision=hub_id.revision))
        read_config(config.parent, via)
    folder = repo_folder_name(repo_id=hub_id.repo, repo_type="model")
    blobs, total = Path(constants.HF_HUB_CACHE) / folder / "blobs", sum(sizes.values())
    with progress.task(f"Downloading {hub_id}", total) as advance, _watch(blobs, total, advance):
        return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, allow_patterns=list(sizes)))


def _take_over(snapshot: Path, names: Iterable[str], directory: Path) -> None:
    """Puts files of a snapshot into a directory; those of weights lie beside the others, wherever they were."""
    for name in names:
        source = (snapshot / name).resolve()
        target = directory / (Path(name).name if is_gguf(name) else name)
        target.parent.mkdir(exist_ok=True)
        if not name.lower().endswith(WEIGHTS):
            shutil.copyfile(source, target)
            continue
        try:
            os.link(source, target)
        except OSError:  # on another disk, or not ours
            target.symlink_to(source)


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
