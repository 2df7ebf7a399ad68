"""Downloads a model from a hub (``HF_ENDPOINT``, ``HF_TOKEN``, … as its own client reads them)."""

from __future__ import annotations

import fnmatch
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.store.errors import StoreError
from app.store.files import read_config
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


def download(hub_id: HubId, directory: Path, progress: ProgressReporter) -> str:
    """Downloads weights, configs and tokenizer files into ``directory``; returns the commit they are of.

    Raises:
        StoreError: no such repository or revision, no access, no connection, or no safetensors weights.
    """
    # Imported here because only this needs it, and it takes a while.
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        with progress.task(f"Looking up {hub_id}"):
            info = HfApi().model_info(hub_id.repo, revision=hub_id.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_wanted(file.rfilename)}
        _check_weights(hub_id, sizes, [file.rfilename for file in info.siblings or ()])
        # Before gigabytes of weights, what says whether they can be used.
        hf_hub_download(hub_id.repo, "config.json", revision=info.sha, local_dir=directory)
        read_config(directory)
        with (
            progress.task(f"Downloading {hub_id}", sum(sizes.values())) as advance,
            _watch(directory, sum(sizes.values()), advance),
        ):
            snapshot_download(hub_id.repo, revision=info.sha, local_dir=directory, allow_patterns=list(sizes))
    except StoreError:
        raise
    except Exception as e:
        raise StoreError(f"cannot fetch {hub_id}: {_reason(e)}") from e
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    return str(info.sha)


def _is_wanted(name: str) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return "/" not in name and matches(_WANTED) and not matches(_UNWANTED)


def _check_weights(hub_id: HubId, wanted: dict[str, int], everything: list[str]) -> None:
    if any(name.endswith(".safetensors") for name in wanted):
        return
    pickled = [name for name in everything if name.endswith((".bin", ".pt", ".pth"))]
    instead = f" (only {pickled[0]}, a pickled file, which is never opened)" if pickled else ""
    raise StoreError(f"{hub_id} has no safetensors weights{instead}")


@contextmanager
def _watch(directory: Path, total: int, advance: Advance) -> Iterator[None]:
    """Reports the bytes that appear below ``directory``: true for every way in which the client may download."""
    done = threading.Event()

    def report() -> None:
        reported = 0
        while not done.wait(_POLL_SECONDS):
            present = min(total, _bytes_below(directory))
            advance(max(0, present - reported))
            reported = max(reported, present)

    thread = threading.Thread(target=report, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _bytes_below(directory: Path) -> int:
    size = 0
    for path in directory.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # renamed between the two calls
    return size


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    match error:
        case RevisionNotFoundError():
            return "the repository has no such revision"
        case GatedRepoError():
            return "access has to be granted on the hub first; then set HF_TOKEN"
        case RepositoryNotFoundError():
            return "no such repository, or a private one, which needs HF_TOKEN"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
