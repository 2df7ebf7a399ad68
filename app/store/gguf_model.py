"""A GGUF file as a model: the JSON files that go with it are derived from its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from app.checkpoints.gguf_header import GGUFHeader, read_gguf_header
from app.checkpoints.gguf_split import parts_of, split_name
from app.checkpoints.header import WeightError
from app.models.architectures import find_gguf, parse_config
from app.models.config import ConfigError
from app.store.checking import derive_from_gguf
from app.store.errors import StoreError
from app.store.files import ModelFiles, read_model
from app.store.gguf_config import config_json, generation_config_json, tokenizer_config_json
from app.store.gguf_tokenizer import GGUFTokenizerError, build_tokenizer
from app.store.home import FORMAT, Manifest, Store, slug
from app.store.progress import ProgressReporter


class _TokenizerFields(msgspec.Struct, rename=lambda name: f"tokenizer.ggml.{name}"):
    """Types of the metadata that a tokenizer is built from."""

    tokens: list[str]
    model: str
    pre: str | None = None
    token_type: list[int] | None = None
    merges: list[str] | None = None
    scores: list[float] | None = None
    unknown_token_id: int | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_space_prefix: bool | None = None


def write_derived(gguf: Path, directory: Path) -> None:
    """Writes ``config.json``, ``generation_config.json``, ``tokenizer_config.json`` and ``tokenizer.json``.

    Raises:
        StoreError: a file that is broken or cannot be served.
    """
    try:
        header = read_gguf_header(gguf)
    except WeightError as e:
        raise StoreError(str(e)) from None
    config = config_json(header)
    try:
        parse_config(config)
    except ConfigError as e:
        raise StoreError(f"{gguf}: its metadata amount to a config.json that cannot be served: {e}") from None
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", generation_config_json(header))
    _write_json(directory / "tokenizer_config.json", tokenizer_config_json(header))
    (directory / "tokenizer.json").write_text(_tokenizer_json(header), encoding="utf-8")


def open_gguf(path: Path, store: Store, progress: ProgressReporter) -> ModelFiles:
    """A GGUF file where it is, with the files derived from it in the store; of a model that is split, any file.

    They are derived again when a file's path, size or time of change is another; what was derived before is deleted.

    Args:
        path: absolute. The model is named after it, also where it is a link: in a hub's cache the target's name is
            a hash.

    Raises:
        StoreError: a file that is missing, broken or cannot be served.
    """
    try:
        parts = parts_of(path)
    except WeightError as e:
        raise StoreError(str(e)) from None
    first, name = parts[0], model_name(path)
    entry = _entry_name(name, parts)

    def build(directory: Path) -> Manifest:
        with progress.task(f"Reading {first.name}"):
            derive_from_gguf(first, directory)
        return Manifest(name=name, source=str(first), weights=[str(part) for part in parts])

    found = store.find(entry)
    if found is None:
        found = store.create(entry, build, progress)
        for other, manifest in list(store.entries()):
            if manifest.source == str(first) and other != entry:
                store.remove(other, progress)
    return read_model(name, found[0], parts)


def model_name(path: Path) -> str:
    """The name that a model in a GGUF file has by itself; any file of one that is split."""
    split = split_name(path)
    if split is not None:
        return split.stem
    return path.stem if path.suffix.lower() == ".gguf" else path.name


def _entry_name(name: str, parts: Sequence[Path]) -> str:
    identity = str(FORMAT)
    for part in parts:
        try:
            status = part.stat()
        except OSError as e:
            raise StoreError(f"{part}: {e.strerror or e}") from None
        identity += f"\0{part.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return f"{slug(name)}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _tokenizer_json(header: GGUFHeader) -> str:
    try:
        msgspec.convert(header.metadata, _TokenizerFields)
        before_space = find_gguf(header.architecture).names.gguf_tokens_before_space
        return str(build_tokenizer(header.metadata, before_space=before_space).to_str(pretty=False))
    except (msgspec.ValidationError, GGUFTokenizerError) as e:
        raise StoreError(f"{header.path}: {e}") from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
