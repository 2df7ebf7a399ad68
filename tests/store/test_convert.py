from __future__ import annotations

import base64
import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from app.store import ModelNotFound, SilentProgress, Store, StoreError, pull, resolve
from app.text.tokenizer import Tokenizer
from tests.store.tiny import VOCAB, write_directory, write_json


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model with GPT-2's files instead of a tokenizer.json."""
    directory = write_directory(tmp_path / "old-style", tokenizer=False)
    write_json(directory / "vocab.json", {token: token_id for token_id, token in enumerate(VOCAB)})
    (directory / "merges.txt").write_text("#version: 0.2\na b\n")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|eos|>")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **special})
    return directory


def test_conversion_is_kept_in_the_store_as_long_as_its_source_stays_the_same(directory: Path, store: Store) -> None:
    with pytest.raises(ModelNotFound, match=r"old-style has no tokenizer\.json; convert with: tuili pull /.*old-style"):
        resolve(str(directory), store)
    before = sorted(directory.iterdir())
    files = pull(str(directory), store, SilentProgress())
    assert files == resolve(str(directory), store)
    assert files.directory == directory
    assert files.tokenizer_file.is_relative_to(store.home)
    assert files.eos_token_ids == (1,)
    assert tokenizers.Tokenizer.from_file(str(files.tokenizer_file)).encode("abc").ids == [
        VOCAB.index("ab"),
        VOCAB.index("c"),
    ]
    assert sorted(directory.iterdir()) == before
    (directory / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ModelNotFound, match="convert with: tuili pull"):
        resolve(str(directory), store)


# None begins with a space: transformers' tokenizers put no second one before it, other than sentencepiece.
TEXTS = ["The quick brown fox", "Hello  world ", "你好，世界 é 🎉", "two\nlines\t1234", ""]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_model_gives_the_ids_of_its_own_library(tmp_path: Path, store: Store, kind: str) -> None:
    directory = write_directory(tmp_path / "m", tokenizer=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": False} | special)
    sentences = [
        "The quick brown fox jumps over the lazy dog.",
        "Hello world, hello tokens!",
        "你好，世界",
        "naïve 1234",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 50),
        model_prefix=str(directory / "tokenizer"),
        model_type=kind,
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    files = pull(str(directory), store, SilentProgress())
    assert files.eos_token_ids == (1, 2)  # config.json's and the tokenizer's
    converted = tokenizers.Tokenizer.from_file(str(files.tokenizer_file))
    own = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    for text in TEXTS:
        assert converted.encode(text, add_special_tokens=False).ids == own.encode(text), text
        assert Tokenizer.load(files.tokenizer_file).decode(own.encode(text)) == text


def test_tiktoken_model(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m", tokenizer=False)
    pieces = [bytes([value]) for value in range(256)] + [b"ab", b"abc"]
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(pieces)]
    (directory / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": ["<|eos|>"], "eos_token": "<|eos|>"}
    write_json(directory / "tokenizer_config.json", config)
    tokenizer = Tokenizer.load(pull(str(directory), store, SilentProgress()).tokenizer_file)
    assert tokenizer.encode("abcab", add_special_tokens=False) == [257, 256]


def test_modules_of_the_working_directory_are_not_run(
    directory: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers.py").write_text("raise SystemExit('the wrong transformers')")
    monkeypatch.chdir(tmp_path)
    assert pull(str(directory), store, SilentProgress()).tokenizer_file.is_file()


@pytest.mark.parametrize("absent", ["transformers", "sentencepiece"])
def test_without_the_extra_it_says_what_to_install(
    directory: Path, store: Store, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == absent else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    if absent != "transformers":
        assert pull(str(directory), store, SilentProgress()).tokenizer_file.is_file()  # vocab.json needs no more
        (directory / "tokenizer.model").touch()
    with pytest.raises(StoreError, match=r"pip install 'tuili\[convert\]'$"):
        pull(str(directory), store, SilentProgress())


def test_files_that_transformers_cannot_convert(directory: Path, store: Store) -> None:
    (directory / "vocab.json").write_text("{")
    with pytest.raises(StoreError, match="old-style: cannot convert its tokenizer: ") as caught:
        pull(str(directory), store, SilentProgress())
    assert "\n" not in str(caught.value)
    assert not any((store.home / "models").iterdir())


def test_code_of_the_model_directory_is_not_run(directory: Path, store: Store) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    auto_map = {"AutoTokenizer": ["evil.Tokenizer", None]}
    write_json(directory / "tokenizer_config.json", config | {"tokenizer_class": "Tokenizer", "auto_map": auto_map})
    (directory / "evil.py").write_text(f"open({str(directory / 'ran')!r}, 'w')")
    try:
        pull(str(directory), store, SilentProgress())
    except StoreError as e:
        assert "\n" not in str(e)  # noqa: PT017 - it may fall back to a class it knows
    assert not (directory / "ran").exists()


def test_no_tokenizer_at_all(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m", tokenizer=False)
    with pytest.raises(StoreError, match=r"no tokenizer\.json and no other tokenizer files"):
        pull(str(directory), store, SilentProgress())
