"""Which tokens begin, end and pad a text, out of the several files that may say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.store.errors import StoreError


def token_text(value: object) -> str | None:
    """Text of a token that a config gives as a string or as the fields of an added token."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def eos_token_ids(
    directory: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    tokenizer_file: Path,
) -> tuple[int, ...]:
    """Union of the ids that ``config.json``, ``generation_config.json`` and the tokenizer's files give, ascending.

    Raises:
        StoreError: something that is no token id, or an EOS token that the tokenizer does not have.
    """
    ids = set(_ids(directory / "config.json", config.get("eos_token_id")))
    ids.update(_ids(directory / "generation_config.json", generation.get("eos_token_id")))
    text = token_text(tokenizer.get("eos_token"))
    if text is not None and tokenizer_file.exists():
        ids.add(_token_id(text, tokenizer, tokenizer_file))
    return tuple(sorted(ids))


def _ids(file: Path, value: object) -> Iterator[int]:
    for token_id in value if isinstance(value, list) else [value]:
        if token_id is None:
            continue
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < 1 << 31:
            raise StoreError(f"{file}: eos_token_id = {token_id!r} is no token id")
        yield token_id


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _Added(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _Vocabulary(msgspec.Struct):
    model: _Model


def _token_id(text: str, tokenizer: Mapping[str, Any], tokenizer_file: Path) -> int:
    """Looks among the few added tokens first: reading the whole vocabulary takes its time."""
    decoder = tokenizer.get("added_tokens_decoder")
    for token_id, token in decoder.items() if isinstance(decoder, dict) else ():
        if token_text(token) == text and token_id.isdecimal():
            return int(token_id)
    try:
        definition = tokenizer_file.read_bytes()
        for added in msgspec.json.decode(definition, type=_Added).added_tokens:
            if added.content == text:
                return added.id
        vocab = msgspec.json.decode(definition, type=_Vocabulary).model.vocab
    except OSError as e:
        raise StoreError(f"{tokenizer_file}: {e.strerror or e}") from None
    except msgspec.DecodeError as e:
        raise StoreError(f"{tokenizer_file}: {e}") from None
    if isinstance(vocab, list):  # a Unigram model lists its pieces by id
        vocab = {piece: token_id for token_id, (piece, _) in enumerate(vocab)}
    if text not in vocab:
        raise StoreError(f"{tokenizer_file}: the EOS token {text!r} is not in the vocabulary")
    return vocab[text]
