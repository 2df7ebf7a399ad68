"""Tokenizers over which native code panics, loops or takes all memory: refused by name, in one line."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.bounded import Bounds
from app.store import SilentProgress, Store, StoreError, pull, resolve
from app.store.checking import check_tokenizer, derive_from_gguf
from app.store.progress import Advance
from tests.store.tiny import write_directory, write_gguf

SILENT = SilentProgress()
SMALL = Bounds(memory=512 << 20, seconds=5)


class Recorder:
    """Keeps what was shown."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        self.tasks.append(description)
        yield lambda _: None


def change(file: Path, **fields: Any) -> None:
    """Sets fields of a ``tokenizer.json``; those of the model as ``model={…}`` beside what it has."""
    tree = json.loads(file.read_text())
    tree |= fields | {"model": tree["model"] | fields.get("model", {})}
    file.write_text(json.dumps(tree))


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def template(pieces: list[str], known: dict[str, Any]) -> dict[str, Any]:
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": piece, "type_id": 0}} for piece in pieces]
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": known}


CHARSMAP = base64.b64encode(b"abc").decode()
PAD = {"id": "<|pad|>", "ids": [2], "tokens": ["<|pad|>"]}
HOSTILE: dict[str, dict[str, Any]] = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
    "prefix longer than a token": {"model": {"continuing_subword_prefix": "##"}},
    "pattern without end": {"pre_tokenizer": split(r"(\w+)*!")},
    "template of an unknown token": {"post_processor": template(["<x>"], {})},
    "a hundred thousand tokens more": {"post_processor": template(["<|pad|>"] * 100_000, {"<|pad|>": PAD})},
    "long prefix of every text": {"normalizer": {"type": "Prepend", "prepend": "a" * 20_000_000}},
    "long text for every space": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "a" * 1_000_000}
    },
    "long text before every byte of a token": {
        "decoder": {"type": "Replace", "pattern": {"String": ""}, "content": "a" * 20_000_000}
    },
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = write_directory(tmp_path / "m")
    change(
        directory / "tokenizer.json",
        decoder={"type": "ByteLevel"} | dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), True),
    )
    return directory


def test_what_hostile_ones_are_made_of_is_sound(directory: Path) -> None:
    check_tokenizer(directory / "tokenizer.json", SILENT, bounds=SMALL)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizer_is_refused_by_name(directory: Path, name: str) -> None:
    file = directory / "tokenizer.json"
    change(file, **HOSTILE[name])
    with pytest.raises(StoreError, match=r"m/tokenizer\.json: cannot be used: ") as caught:
        check_tokenizer(file, SILENT, bounds=SMALL)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("unknown", ["[" * 200_000 + "]" * 200_000, "[" + "[]," * 4_000_000 + "[]]"])
def test_json_too_deep_or_too_large(directory: Path, unknown: str) -> None:
    file = directory / "tokenizer.json"
    file.write_text('{"x":' + unknown + "," + file.read_text().lstrip()[1:])
    with pytest.raises(StoreError, match=r"m/tokenizer\.json: cannot be used: (RecursionError|takes more than)"):
        check_tokenizer(file, SILENT, bounds=Bounds(memory=192 << 20, seconds=5))


def test_every_way_to_a_model_checks(directory: Path, store: Store) -> None:
    change(directory / "tokenizer.json", **HOSTILE["charsmap"])
    for find in (lambda: resolve(str(directory), store), lambda: pull(str(directory), store, SILENT)):
        with pytest.raises(StoreError, match=r"m/tokenizer\.json: cannot be used: .*precompiled_charsmap"):
            find()


def test_a_good_tokenizer_is_tried_once(directory: Path, store: Store) -> None:
    checking = "Checking tokenizer.json"
    for expected in ([checking], []):
        shown = Recorder()
        pull(str(directory), store, shown)
        assert shown.tasks == expected
    copy = write_directory(directory.parent / "copy")
    (copy / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    shown = Recorder()
    pull(str(copy), store, shown)
    assert shown.tasks == []
    change(directory / "tokenizer.json", normalizer={"type": "NFC"})
    pull(str(directory), store, shown)
    assert shown.tasks == [checking]


def test_a_home_that_cannot_be_written_is_no_hindrance(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert pull(str(directory), Store(tmp_path / "file" / "home"), SILENT).name == "m"


def test_a_gguf_file_that_takes_too_much_is_named(tmp_path: Path) -> None:
    pieces = ["a" * size for size in range(1, 250)] + [f"{prefix}{'a' * 250}" for prefix in range(40_000)]
    tokens = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-1.0] * len(pieces),
        "tokenizer.ggml.token_type": [1] * len(pieces),
    }
    file = write_gguf(tmp_path / "m.gguf", extra=tokens)
    with pytest.raises(StoreError, match=r"^/.*m\.gguf: cannot be used: takes more than 1 s of processor time$"):
        derive_from_gguf(file, tmp_path, bounds=Bounds(seconds=1))
