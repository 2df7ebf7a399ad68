"""The Hugging Face style JSON files that a GGUF file's metadata amounts to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gguf import TokenType

from app.checkpoints.gguf_header import GGUFHeader
from app.checkpoints.tied_head import equal_data
from app.models.architectures import find_gguf
from app.models.config_fields import ConfigError
from app.models.gguf_config import GGUFReader
from app.store.errors import StoreError
from app.store.gguf_tokenizer import GGUFTokenizerError, special_token_id

_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
_TEMPLATE = "tokenizer.chat_template"
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}

_INFILL = {
    "prefix_token": ("fim_pre_token_id", "prefix_token_id"),
    "suffix_token": ("fim_suf_token_id", "suffix_token_id"),
    "middle_token": ("fim_mid_token_id", "middle_token_id"),
}
"""Newer and older names of the tokens for filling in the middle."""


def config_json(header: GGUFHeader) -> dict[str, Any]:
    """``config.json`` of a GGUF file, by the family that its architecture says.

    Raises:
        StoreError: unknown architecture, a field that is missing or malformed, or a feature that is not supported.
    """
    try:
        family = find_gguf(header.architecture)
    except ConfigError as error:
        raise StoreError(f"{header.path}: {error}") from None
    make = family.names.gguf_config
    if make is None:
        raise StoreError(f"{header.path}: architecture {header.architecture!r} has no names of GGUF metadata")
    try:
        config = make(GGUFReader(header))
    except ConfigError as error:
        raise StoreError(str(error)) from None
    return {**config, "vocab_size": _vocab_size(header), "tie_word_embeddings": _ties_head(header)}


def _ties_head(header: GGUFHeader) -> bool:
    """Whether the file has no output head but the token embedding, or a copy of it."""
    embedding, head = header.tensors.get("token_embd.weight"), header.tensors.get("output.weight")
    if embedding is None or head is None:
        return head is None
    return equal_data(header.file_of(embedding), embedding, header.file_of(head), head)


def tokenizer_config_json(header: GGUFHeader) -> dict[str, Any]:
    """``tokenizer_config.json``: special tokens and the chat template.

    Raises:
        StoreError: a special token that is not in the vocabulary, or a template that is no text.
    """
    metadata = header.metadata
    config: dict[str, Any] = {
        "bos_token": _token(header, "bos_token_id"),
        "eos_token": _token(header, "eos_token_id"),
        "pad_token": _token_beside_text(header, "padding_token_id"),
        "unk_token": _token_beside_text(header, "unknown_token_id"),
        "sep_token": _token_beside_text(header, "seperator_token_id"),
        "cls_token": _token_beside_text(header, "cls_token_id"),
        "mask_token": _token_beside_text(header, "mask_token_id"),
        **{name: _infill_token(header, keys) for name, keys in _INFILL.items()},
        # Silence is left to the tokenizer, which knows what it means for its kind.
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token"),
        "chat_template": _chat_template(header),
    }
    return {key: value for key, value in config.items() if value is not None}


def _chat_template(header: GGUFHeader) -> str | list[dict[str, str]] | None:
    """The template, or all of them with their names where there are several."""

    def text(key: str) -> str | None:
        value = header.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise StoreError(f"{header.path}: {key} is not a text")
        return value

    default, names = text(_TEMPLATE), header.metadata.get(f"{_TEMPLATE}s", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{header.path}: {_TEMPLATE}s is no list of names")
    named = {name: text(f"{_TEMPLATE}.{name}") for name in names}
    for name, template in named.items():
        if template is None:
            raise StoreError(f"{header.path}: {_TEMPLATE}.{name} is missing, which {_TEMPLATE}s names")
    if not named:
        return default
    return [
        {"name": name, "template": text} for name, text in {"default": default, **named}.items() if text is not None
    ]


def generation_config_json(header: GGUFHeader) -> dict[str, Any]:
    """``generation_config.json``: the tokens that end an answer, and sampling defaults if the file has any.

    Raises:
        StoreError: a token that is not in the vocabulary, or a default that is no number.
    """
    metadata = header.metadata
    ids = {_token_id(header, name) for name in _END_TOKENS} | _silent_end_tokens(header)
    config: dict[str, Any] = {"eos_token_id": sorted(token_id for token_id in ids if token_id is not None)}
    for key, ours in _SAMPLING.items():
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise StoreError(f"{header.path}: {key} is not a finite number")
        config[ours] = value
    return config


def _silent_end_tokens(header: GGUFHeader) -> set[int]:
    """End tokens that the family knows of and that are control tokens in this file."""
    tokens, types = _tokens(header.metadata), header.metadata.get("tokenizer.ggml.token_type")
    try:
        names = find_gguf(header.architecture).names.gguf_end_tokens
    except ConfigError as error:
        raise StoreError(f"{header.path}: {error}") from None
    found = {tokens.index(name) for name in names if name in tokens}
    return {index for index in found if isinstance(types, list) and types[index : index + 1] == [TokenType.CONTROL]}


def _vocab_size(header: GGUFHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise StoreError(f"{header.path}: tensor 'token_embd.weight' is missing")
    return embedding.shape[0]


def _token_id(header: GGUFHeader, name: str) -> int | None:
    try:
        return special_token_id(header.metadata.get(f"tokenizer.ggml.{name}"), name, len(_tokens(header.metadata)))
    except GGUFTokenizerError as e:
        raise StoreError(f"{header.path}: {e}") from None


def _token(header: GGUFHeader, name: str) -> str | None:
    token_id = _token_id(header, name)
    return None if token_id is None else str(_tokens(header.metadata)[token_id])


def _token_beside_text(header: GGUFHeader, name: str) -> str | None:
    """The token, unless it is of the kind that text is made of.

    A named token is a control token to a tokenizer, which leaves it out of answers. Files whose makers knew of none
    name token 0, a ``!`` in many a vocabulary.
    """
    token_id = _token_id(header, name)
    types = header.metadata.get("tokenizer.ggml.token_type")
    if token_id is not None and isinstance(types, list) and types[token_id : token_id + 1] == [TokenType.NORMAL]:
        return None
    return _token(header, name)


def _infill_token(header: GGUFHeader, names: Sequence[str]) -> str | None:
    """A token for filling in the middle, by the first of the names that the file has."""
    return next((token for name in names if (token := _token_beside_text(header, name)) is not None), None)


def _tokens(metadata: Mapping[str, Any]) -> list[Any]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return tokens if isinstance(tokens, list) else []
