"""Makes a ``tokenizer.json`` out of other tokenizer files, with transformers in a process of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from app.bounded import BoundedError, Bounds, run_bounded
from app.store.errors import StoreError
from app.store.progress import ProgressReporter

SOURCES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Files from which transformers can build a tokenizer."""

_FOR_MODEL_FILES = ("sentencepiece", "google.protobuf", "tiktoken")
"""Modules that transformers reads a ``.model`` file with; which of them it takes is not said by its name."""
_BOUNDS = Bounds(memory=8 << 30, seconds=600)
"""It may import torch, and a large vocabulary takes minutes."""
_SCRIPT = """import os
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
if not tokenizer.is_fast:
    sys.exit("transformers has no fast version of this tokenizer")
tokenizer.backend_tokenizer.save(sys.argv[2])"""


def convert_tokenizer(source: Path, target: Path, progress: ProgressReporter) -> None:
    """Writes ``target``, a ``tokenizer.json``, from the tokenizer files of directory ``source``.

    Raises:
        StoreError: there are none, the extra ``convert`` is not installed, or transformers cannot convert them.
    """
    found = [name for name in SOURCES if (source / name).is_file()]
    if not found:
        raise StoreError(f"{source}: no tokenizer.json and no other tokenizer files")
    needed = ("transformers", *(_FOR_MODEL_FILES if any(name.endswith(".model") for name in found) else ()))
    if not all(_is_installed(name) for name in needed):
        raise StoreError(f"{source}: no tokenizer.json; to convert its tokenizer: pip install 'tuili[convert]'")
    with progress.task(f"Converting the tokenizer of {source.name}"):
        try:
            run_bounded(_SCRIPT, str(source), str(target), bounds=_BOUNDS)
        except BoundedError as e:
            raise StoreError(f"{source}: cannot convert its tokenizer: {e}") from None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is the package that it is in
        return False
