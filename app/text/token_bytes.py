"""The bytes that each token id stands for, read off a ``tokenizer.json``.

A token's text is not well defined: one character may be spread over several tokens. Its bytes are. Everything that
turns ids into text (decoding, streaming, logprobs) goes through this table, so all of it agrees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_MAX_VOCAB = 1 << 24
"""Ids index a table: one absurd id in a stranger's file must not fill the memory."""

_Step = Callable[[str], "str | bytes"]
"""One decoder step for one token; bytes end the chain."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message is one line a person can act on."""


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """``table[id]`` are the bytes of a token, ``b""`` for an id without one."""

    table: list[bytes]
    leading_spaces: int
    """Spaces that decoding drops from the start of a text: those that encoding put there."""


def build_token_bytes(
    decoder: Mapping[str, Any] | None, vocab: Mapping[str, int], added: Mapping[int, str]
) -> TokenBytes:
    """Bytes of every id.

    Args:
        decoder: the ``decoder`` entry of ``tokenizer.json``.
        vocab: ids by token, the model's own and the added ones.
        added: contents of added tokens by id.

    Raises:
        TokenizerError: the decoder is none of byte-level BPE and SentencePiece with byte fallback, or an id is absurd.
    """
    steps, leading_spaces, byte_level = _decoder_steps(decoder)
    size = max([*vocab.values(), *added], default=-1) + 1
    if size > _MAX_VOCAB:
        raise TokenizerError(f"tokenizer.json: token id {size - 1} is beyond the {_MAX_VOCAB} that are supported")
    table = [b""] * size
    for token, token_id in vocab.items():
        table[token_id] = _apply(steps, token)
    for token_id, content in added.items():
        # Added tokens are matched in plain text: in byte-level BPE they are not spelled in its alphabet.
        table[token_id] = content.encode() if byte_level else _apply(steps, content)
    return TokenBytes(table, leading_spaces)


def _apply(steps: Sequence[_Step], token: str) -> bytes:
    for step in steps:
        result = step(token)
        if isinstance(result, bytes):
            return result
        token = result
    return token.encode()


def _decoder_steps(decoder: Mapping[str, Any] | None) -> tuple[list[_Step], int, bool]:
    """Steps to run over one token, leading spaces to drop from a text, and whether it is byte-level BPE."""
    if decoder is None:
        raise TokenizerError("tokenizer.json has no decoder")
    steps: list[_Step] = []
    leading_spaces = 0
    byte_level = False
    for part in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
        match part["type"]:
            case "ByteLevel":
                steps.append(_byte_level)
                byte_level = True
            case "ByteFallback":
                steps.append(_byte_fallback)
            case "Replace" if "String" in part["pattern"]:
                steps.append(_replacement(part["pattern"]["String"], part["content"]))
            case "Metaspace":
                steps.append(_replacement(part["replacement"], " "))
                leading_spaces = int(_metaspace_prepends(part))
            case "Strip" if part["content"] == " " and part["stop"] == 0:
                leading_spaces = part["start"]
            case "Fuse":
                pass
            case other:
                raise TokenizerError(f"tokenizer.json: decoder {other!r} is not supported")
    return steps, leading_spaces, byte_level


def _metaspace_prepends(part: Mapping[str, Any]) -> bool:
    return bool(part["prepend_scheme"] != "never" if "prepend_scheme" in part else part.get("add_prefix_space", True))


def _replacement(old: str, new: str) -> _Step:
    return lambda token: token.replace(old, new)


def _byte_fallback(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, other bytes for U+0100 onwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()
