"""Makes a ``tokenizer.json`` out of other tokenizer files, with transformers in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from app.store.errors import StoreError
from app.store.progress import ProgressReporter

SOURCES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Files from which transformers can build a tokenizer."""

_SCRIPT = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
if not tokenizer.is_fast:
    sys.exit("transformers has no fast version of this tokenizer")
tokenizer.backend_tokenizer.save(sys.argv[2])
"""


def convert_tokenizer(source: Path, target: Path, progress: ProgressReporter) -> None:
    """Writes ``target``, a ``tokenizer.json``, from the tokenizer files of directory ``source``.

    Raises:
        StoreError: there are none, transformers is not installed, or it cannot convert them.
    """
    if not any((source / name).is_file() for name in SOURCES):
        raise StoreError(f"{source}: no tokenizer.json and no other tokenizer files")
    if importlib.util.find_spec("transformers") is None:
        raise StoreError(f"{source}: no tokenizer.json; to convert its tokenizer: pip install 'tuili[convert]'")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with progress.task(f"Converting the tokenizer of {source.name}"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", _SCRIPT, str(source), str(target)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=environment,
        )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise StoreError(f"{source}: cannot convert its tokenizer: {lines[-1] if lines else 'transformers failed'}")
