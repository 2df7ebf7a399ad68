"""The ids of the tokens that end an answer, from all files of a model directory that name some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.models.architectures import parse_config
from app.store.errors import StoreError
from app.store.special_tokens import DeclaredTokens, Definition, TokenizerFiles, decode_definition, is_token_id


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _Vocabulary(msgspec.Struct):
    model: _Model


def eos_token_ids(
    directory: Path,
    generation: Mapping[str, Any],
    files: TokenizerFiles,
    declared: DeclaredTokens,
    via: str | None = None,
) -> tuple[int, ...]:
    """Union of the ids that ``config.json``, ``generation_config.json`` and the tokenizer give, ascending.

    Args:
        via: the library that is to compute the model; None: tuili does.

    Raises:
        StoreError: something that is no token id, or an EOS token that neither tokenizer nor model has.
    """
    ids = set(_ids(directory / "config.json", files.config.get("eos_token_id")))
    text_part = files.config.get("text_config")
    if isinstance(text_part, dict):  # of a model that sees images
        ids.update(_ids(directory / "config.json", text_part.get("eos_token_id")))
    ids.update(_ids(directory / "generation_config.json", generation.get("eos_token_id")))
    text = declared.named.get("eos_token")
    if not text or files.definition is None:
        return tuple(sorted(ids))
    token_id = _token_id(text, files.definition, declared)
    if token_id is None or (text in declared.invented and token_id >= _vocab_size(files.config, via)):
        raise StoreError(f"{directory}: the EOS token {text!r} is not in the vocabulary")
    return tuple(sorted(ids | {token_id}))


def _vocab_size(config: Mapping[str, Any], via: str | None) -> int:
    if via is None:
        return parse_config(config).vocab_size
    size = config.get("vocab_size")
    return size if isinstance(size, int) else 0


def _token_id(text: str, definition: bytes, declared: DeclaredTokens) -> int | None:
    """The id that the tokenizer gives a token. Declared ids do not count there, the order does."""
    vocab = decode_definition(definition, _Vocabulary).model.vocab
    if isinstance(vocab, list):  # a Unigram model lists its pieces by id
        vocab = {piece: token_id for token_id, (piece, _) in enumerate(vocab)}
    if text in vocab:
        return vocab[text]
    own = () if declared.replaces else decode_definition(definition, Definition).added_tokens
    contents = [*(str(token.get("content")) for token in own), *(token.content for token in declared.added)]
    highest = -1
    for content in dict.fromkeys(filter(None, contents)):
        token_id = vocab[content] if content in vocab else max(highest + 1, len(vocab))
        if content == text:
            return token_id
        highest = max(highest, token_id)
    return None


def _ids(file: Path, value: object) -> Iterator[int]:
    for token_id in value if isinstance(value, list) else [value]:
        if token_id is None:
            continue
        if not is_token_id(token_id):
            raise StoreError(f"{file}: eos_token_id = {token_id!r} is no token id")
        yield token_id
