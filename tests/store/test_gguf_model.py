from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from app.store import SilentProgress, Store, StoreError, pull, resolve
from app.store.gguf_model import write_derived
from tests.store.tiny import write_gguf


def entries(store: Store) -> list[str]:
    return [path.name for path in sorted((store.home / "models").iterdir())]


def test_gguf_file_is_served_where_it_is(tmp_path: Path, store: Store) -> None:
    file = write_gguf(tmp_path / "Tiny Model.gguf")
    files = resolve(str(file), store)
    assert files.name == "Tiny Model"
    assert files.weights == (file,)
    assert files.directory.parent == store.home / "models"
    assert files.directory.name.startswith("Tiny-Model-")
    assert files.config["architectures"] == ["LlamaForCausalLM"]
    assert files.chat_template == "{{ messages[0].content }}"
    assert (files.bos_token, files.eos_token, files.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert files.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    assert files.eos_token_ids == (1,)
    assert files.add_bos is False
    assert tokenizers.Tokenizer.from_file(str(files.tokenizer_file)).encode("ab<|eos|>").ids == [259, 1]
    assert sorted(path.name for path in files.directory.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_templates_with_names(tmp_path: Path, store: Store) -> None:
    extra = {"tokenizer.chat_templates": ["tool_use", "rag"], "tokenizer.chat_template.tool_use": "t"}
    file = write_gguf(tmp_path / "m.gguf", extra=extra | {"tokenizer.chat_template.rag": "r"})
    files = resolve(str(file), store)
    assert files.chat_template == "{{ messages[0].content }}"
    assert files.chat_templates == {"tool_use": "t", "rag": "r"}
    other = write_gguf(tmp_path / "other.gguf", extra=extra)
    with pytest.raises(StoreError, match=r"tokenizer\.chat_template\.rag is missing, which tokenizer.chat_templates"):
        resolve(str(other), store)
    numbers = write_gguf(tmp_path / "numbers.gguf", extra={"tokenizer.chat_templates": [1, 2]})
    with pytest.raises(StoreError, match=r"tokenizer\.chat_templates is no list of names"):
        resolve(str(numbers), store)


def test_derived_once(tmp_path: Path, store: Store) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    first = resolve(str(file), store)
    stamp = first.tokenizer_file.stat().st_mtime_ns
    assert resolve(str(file), store) == first
    assert pull(str(file), store, SilentProgress()) == first
    assert first.tokenizer_file.stat().st_mtime_ns == stamp


def test_changed_file_is_derived_again_and_the_old_result_deleted(tmp_path: Path, store: Store) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    other = resolve(str(write_gguf(tmp_path / "other.gguf")), store).directory.name
    before = resolve(str(file), store)
    stat = file.stat()
    write_gguf(file, extra={"tokenizer.chat_template": "{{ messages[1].content }}"})  # the same size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    after = resolve(str(file), store)
    assert file.stat().st_size == stat.st_size
    assert after.chat_template == "{{ messages[1].content }}"
    assert entries(store) == sorted([after.directory.name, other])
    assert not before.directory.exists()


def test_two_files_of_one_name_do_not_meet(tmp_path: Path, store: Store) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_gguf(tmp_path / name / "m.gguf", extra={"tokenizer.chat_template": name})
    assert resolve(str(tmp_path / "a" / "m.gguf"), store).chat_template == "a"
    assert resolve(str(tmp_path / "b" / "m.gguf"), store).chat_template == "b"
    assert len(entries(store)) == 2


@pytest.mark.parametrize("kept", [0, 20, 3000, -64])
def test_truncated_file_is_one_line_and_leaves_nothing(tmp_path: Path, store: Store, kept: int) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    resolve(str(file), store)
    file.write_bytes(file.read_bytes()[:kept])
    for find in (lambda: resolve(str(file), store), lambda: pull(str(file), store, SilentProgress())):
        with pytest.raises(StoreError, match=r"m\.gguf: truncated") as caught:
            find()
        assert "\n" not in str(caught.value)
    assert list((store.home / "building").iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tokenizer.ggml.pre": "invented"}, r"m\.gguf: .*pre-tokenizer 'invented'"),
        ({"tokenizer.ggml.model": "bert"}, r"m\.gguf: .*tokenizer of kind 'bert'"),
        ({"tokenizer.ggml.tokens": None}, r"m\.gguf: "),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, r"m\.gguf: .*tokens"),
        ({"tokenizer.ggml.merges": "a b"}, r"m\.gguf: .*merges"),
    ],
)
def test_tokenizer_that_cannot_be_built(tmp_path: Path, store: Store, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        resolve(str(write_gguf(tmp_path / "m.gguf", extra=extra)), store)
    assert "\n" not in str(caught.value)
    assert entries(store) == []


@pytest.mark.parametrize(
    ("key", "message"), [("attention.head_count", r"num_attention_heads"), ("block_count", "num_hidden_layers")]
)
def test_sizes_that_cannot_be_served(tmp_path: Path, store: Store, key: str, message: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", extra={f"llama.{key}": 2**32 - 1, "llama.attention.key_length": 8})
    with pytest.raises(StoreError, match=rf"m\.gguf: .*{message}"):
        resolve(str(file), store)
    assert entries(store) == []


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    directory = tmp_path_factory.mktemp("fuzz")
    return directory, write_gguf(directory / "m.gguf").read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_mutated_file_is_derived_or_refused(scratch: tuple[Path, bytes], changes: list[tuple[int, bytes]]) -> None:
    directory, original = scratch
    mutated = bytearray(original)
    for position, patch in changes:
        mutated[position : position + len(patch)] = patch
    (directory / "m.gguf").write_bytes(mutated)
    try:
        write_derived(directory / "m.gguf", directory)
    except StoreError as e:
        assert str(e).startswith(str(directory))  # noqa: PT017 - a derivation that works is as good
