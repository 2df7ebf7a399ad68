"""Files of strangers are first read by a process that may die of them; what it read well once is not tried again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import tokenizers

from app.bounded import BoundedError, Bounds, run_bounded
from app.store.errors import StoreError
from app.store.files import check_size
from app.store.home import Store
from app.store.progress import ProgressReporter

_VERSION = 1
"""Version of the check. After a change every tokenizer is tried again."""
# The server's own text side, by name: nothing of it is needed in this process to pull a model.
_CHECK = """from pathlib import Path
from app.text.tokenizer_check import check
check(Path(sys.argv[1]))"""
_DERIVE = """from pathlib import Path
from app.text.tokenizer_check import check
from app.store.gguf_model import write_derived
write_derived(Path(sys.argv[1]), Path(sys.argv[2]))
check(Path(sys.argv[2]) / "tokenizer.json")"""


def check_tokenizer(file: Path, progress: ProgressReporter, *, bounds: Bounds | None = None) -> None:
    """Tries whether a process survives to load and use a ``tokenizer.json``.

    Raises:
        StoreError: it crashes or cannot encode text, or takes more time or memory than any tokenizer needs.
    """
    check_size(file)
    with progress.task(f"Checking {file.name}"):
        _run(file, _CHECK, str(file), bounds=bounds)


def check_tokenizer_once(file: Path, store: Store, progress: ProgressReporter) -> None:
    """:func:`check_tokenizer`, unless the store remembers a file of these contents.

    Raises:
        StoreError: as there.
    """
    check_size(file)
    with file.open("rb") as contents:
        digest = hashlib.file_digest(contents, "sha256")
    digest.update(repr((_VERSION, tokenizers.__version__)).encode())
    key = digest.hexdigest()
    if not store.is_checked(key):
        check_tokenizer(file, progress)
        store.mark_checked(key)


def derive_from_gguf(gguf: Path, directory: Path, *, bounds: Bounds | None = None) -> None:
    """Writes the JSON files that a GGUF file's metadata amounts to into ``directory``, the tokenizer checked.

    Raises:
        StoreError: a file that is broken or cannot be served, or takes more time or memory than any needs.
    """
    _run(gguf, _DERIVE, str(gguf), str(directory), bounds=bounds)


def _run(file: Path, source: str, *arguments: str, bounds: Bounds | None) -> None:
    try:
        run_bounded(source, *arguments, bounds=bounds)
    except BoundedError as e:
        line = str(e)
        raise StoreError(line if line.startswith(f"{file}: ") else f"{file}: cannot be used: {line}") from None
