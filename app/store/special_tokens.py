"""Which tokens a model's tokenizer has besides its vocabulary, and which of them have a name.

Several files may say so, and they need not agree. What counts is what transformers makes of the directory: models are
trained and tried with it. Here that is read off the files alone, without importing it. How text is normalised and cut
stays what ``tokenizer.json`` says, also where a class of transformers has a fixed idea of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

import msgspec
from msgspec.structs import replace

from app.models.architectures import ARCHITECTURES
from app.store.errors import StoreError

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = "extra_special_tokens"
_ADDITIONAL = "additional_special_tokens"
"""What the extra ones were called before."""
_DECODER = "added_tokens_decoder"


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is found in a text as it stands. The flags are those of ``tokenizers.AddedToken``."""

    content: str
    special: bool = False
    normalized: bool | None = None
    """Find the token in the normalised text. Never None in a token that leaves this module."""
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of the files of a model directory that say something about tokens; an absent file is empty."""

    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    """Ids by the tokens' texts, from ``added_tokens.json``."""
    definition: bytes | None
    """Contents of ``tokenizer.json``; None when there is none."""


@dataclass(frozen=True)
class DeclaredTokens:
    """What the files around a ``tokenizer.json`` make of its tokens."""

    named: dict[str, str] = field(default_factory=dict)
    """Text by name: ``bos_token``, ``eos_token`` and the like, and a model's own names."""
    added: tuple[AddedToken, ...] = ()
    """To be added in this order to what ``tokenizer.json`` has. A token's id follows from the order alone."""
    invented: frozenset[str] = frozenset()
    """Texts that have a name and are in no list of tokens."""
    replaces: bool = False
    """The ``added_tokens`` of ``tokenizer.json`` do not count, only those in ``added``."""
    adds_bos: bool = False
    """Texts begin with BOS even if the post-processor of ``tokenizer.json`` does not add one."""


@dataclass(frozen=True)
class _TokenizerClass:
    """A class of transformers that takes the vocabulary out of ``tokenizer.json`` and brings tokens of its own."""

    defaults: Mapping[str, str]
    """Named tokens where the files do not give any."""
    resets_flags: bool = False
    """Special tokens always have the usual flags, whatever the files say."""
    adds_bos: bool = False


_END_OF_TEXT = "<|endoftext|>"
_SENTENCE = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_INFILL = {
    "prefix_token": "▁<PRE>",
    "middle_token": "▁<MID>",
    "suffix_token": "▁<SUF>",
    "eot_token": "▁<EOT>",
    "fill_token": "<FILL_ME>",
}
_CLASSES = {
    "LlamaTokenizer": _TokenizerClass(_SENTENCE),
    "CodeLlamaTokenizer": _TokenizerClass(_SENTENCE | _INFILL, adds_bos=True),
    "GemmaTokenizer": _TokenizerClass(
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        }
    ),
    "GPT2Tokenizer": _TokenizerClass(dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT)),
    **dict.fromkeys(
        ("Qwen2Tokenizer", "Qwen3_5Tokenizer"),
        _TokenizerClass(dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT), resets_flags=True),
    ),
}
"""Those that models of the served architectures come with; every other one takes ``tokenizer.json`` as it is."""


class _Padding(msgspec.Struct):
    pad_token: str


class Definition(msgspec.Struct):
    """The fields of a ``tokenizer.json`` that say something about added tokens."""

    added_tokens: list[dict[str, Any]] = []
    padding: _Padding | None = None


_T = TypeVar("_T")


def declared_tokens(files: TokenizerFiles) -> DeclaredTokens:
    """What transformers 5 makes of the tokens of a model directory.

    Raises:
        StoreError: something that is no token, or no id.
    """
    definition = decode_definition(files.definition or b"{}", Definition)
    own = [(_id(token.get("id")), _token(token, listed=True)) for token in definition.added_tokens]
    fields, own_names = _fields(files)
    listed = _listed(files, fields, own)
    by_text = {token.content: token for _, token in listed}
    by_id = dict(listed)
    kind = _tokenizer_class(files)
    if kind is not None:
        fields = {**kind.defaults, **fields}
    if definition.padding is not None:
        fields.setdefault("pad_token", definition.padding.pad_token)
    named = _named(fields, own_names, by_text)
    extra = _extra(fields)

    in_order = [by_id[token_id] for token_id in sorted(by_id)]
    # Where the one list begins with the other, there is nothing to replace.
    replaces = kind is not None and [token for _, token in own] != in_order[: len(own)]
    known = {token.content for token in in_order} | {token.content for _, token in own if not replaces}
    missing = [token for token in (*named.values(), *extra) if token.content not in known]
    names = {token.content for token in named.values()}
    added = [replace(token, special=token.special or token.content in names) for token in (*in_order, *missing)]
    if kind is not None and kind.resets_flags:
        added += [_token(token.content) for token in (*named.values(), *extra)]
    return DeclaredTokens(
        named={name: token.content for name, token in named.items()},
        added=tuple(added),
        invented=frozenset(token.content for token in missing).difference(kind.defaults.values() if kind else ()),
        replaces=replaces,
        adds_bos=kind is not None and kind.adds_bos,
    )


def _tokenizer_class(files: TokenizerFiles) -> _TokenizerClass | None:
    """The class that transformers' ``AutoTokenizer`` takes, if it is one that does more than read the files."""
    model = files.config.get("model_type")
    name = files.tokenizer_config.get("tokenizer_class") or files.config.get("tokenizer_class")
    if not isinstance(name, str) or model in ("qwen2", "qwen3_5"):  # whatever the files of such a model name
        usual = _usual_class(files.config)
        return _CLASSES[usual] if usual else None
    name = name.removesuffix("Fast")
    if model == "mistral" or (name == "LlamaTokenizer" and b'"ByteLevel"' in (files.definition or b"")):
        return None
    return _CLASSES.get(name)


def _usual_class(config: Mapping[str, Any]) -> str | None:
    """The class of a family whose files name none; transformers knows the family by its ``model_type``."""
    if not isinstance(config.get("model_type"), str) or not isinstance(names := config.get("architectures"), list):
        return None
    return next((row.tokenizer for row in ARCHITECTURES if any(name in names for name in row.hf)), None)


def _fields(files: TokenizerFiles) -> tuple[dict[str, Any], dict[str, Any]]:
    """The merged fields of ``tokenizer_config.json`` and ``special_tokens_map.json``, and tokens of a model's own name.

    The map counts, and then goes first, only where the config does not list the added tokens.
    """
    fields = dict(files.tokenizer_config)
    if _ADDITIONAL in fields and not fields.get(_EXTRA):
        fields[_EXTRA] = fields.pop(_ADDITIONAL)
    own_names = {
        name: fields.pop(name) for name in list(fields) if isinstance(fields[name], str) and _is_own_name(name)
    }
    if isinstance(fields.get(_EXTRA), dict):
        own_names |= fields.pop(_EXTRA)
    if _DECODER in fields:
        return fields, own_names
    for name, value in files.special_tokens_map.items():
        if name == _EXTRA and isinstance(value, list):
            before = fields.get(_EXTRA)
            fields[_EXTRA] = (before if isinstance(before, list) else []) + value
        else:
            fields[name] = value
    if isinstance(fields.get(_EXTRA), dict):
        own_names |= fields.pop(_EXTRA)
    return fields, own_names


def _is_own_name(name: str) -> bool:
    return name.endswith("_token") and name not in _NAMES


def _listed(
    files: TokenizerFiles, fields: Mapping[str, Any], own: Iterable[tuple[int, AddedToken]]
) -> list[tuple[int, AddedToken]]:
    """Added tokens with the ids they are listed under; of two with one id the last counts."""
    if _DECODER in fields:
        decoder = fields[_DECODER]
        if not isinstance(decoder, dict):
            raise StoreError(f"{_DECODER} is not an object")
        return [(_id(key), _token(value, listed=True)) for key, value in decoder.items()]
    special = {_token(fields[name]).content for name in _NAMES if fields.get(name) is not None}
    special |= {_token(value).content for value in _list(fields, _EXTRA)}
    added = [
        (_id(token_id), AddedToken(content, special=content in special, normalized=content not in special))
        for content, token_id in files.added_tokens.items()
    ]
    return [*added, *own]


def _named(
    fields: Mapping[str, Any], own_names: Mapping[str, Any], by_text: Mapping[str, AddedToken]
) -> dict[str, AddedToken]:
    named = {name: _token(fields[name]) for name in _NAMES if fields.get(name) is not None}
    named = {name: by_text.get(token.content, token) for name, token in named.items()}
    others = {
        name: value
        for name, value in fields.items()
        if _is_own_name(name) and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
    }
    return named | {name: _token(value) for name, value in {**others, **own_names}.items()}


def _extra(fields: Mapping[str, Any]) -> list[AddedToken]:
    return [_token(value) for value in _list(fields, _EXTRA if _EXTRA in fields else _ADDITIONAL)]


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if value is not None and not isinstance(value, list):
        raise StoreError(f"{name} is not a list of tokens")
    return value or []


def _token(value: object, *, listed: bool = False) -> AddedToken:
    """A token given as its text, or as the fields of an added token.

    Args:
        listed: it stands in a list of all added tokens, where only those are special that say so.

    Raises:
        StoreError: it is neither.
    """
    if isinstance(value, str) and not listed:
        return AddedToken(value, special=True, normalized=False)
    if isinstance(value, dict) and not listed and "__type" not in value:
        value = value | {"special": True}
    try:
        token = msgspec.convert(value, AddedToken)
    except msgspec.ValidationError as e:
        raise StoreError(f"{value!r:.80} is no token: {e}") from None
    return token if token.normalized is not None else replace(token, normalized=not token.special)


def _id(value: object) -> int:
    """A token id; as a key it is a string."""
    token_id = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value) else value
    if not is_token_id(token_id):
        raise StoreError(f"{value!r:.80} is no token id")
    return token_id


def is_token_id(value: object) -> TypeGuard[int]:
    """Whether this is a number that can be a token's id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def decode_definition(definition: bytes, kind: type[_T]) -> _T:
    """Reads the fields that ``kind`` has out of a ``tokenizer.json``.

    Raises:
        StoreError: it is not JSON, or the fields have other types.
    """
    try:
        return msgspec.json.decode(definition, type=kind)
    except (msgspec.DecodeError, RecursionError) as e:
        raise StoreError(f"tokenizer.json: {e}") from None
