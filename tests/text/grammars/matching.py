"""Grammars as the library that enforces them reads them, over a vocabulary of bytes."""

from __future__ import annotations

import random

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from app.text.grammars.grammar import Grammar

_EOS = 256


class _Bytes:
    eos_token_id = _EOS
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(_EOS)), b"<eos>", b"<|tag|>")
    special_token_ids = (_EOS, _EOS + 1)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


_TOKENIZER = LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=_EOS, slices=[])


def matcher(grammar: Grammar) -> LLMatcher:
    """A matcher at the beginning of a text; the grammar has to be sound."""
    made = LLMatcher(_TOKENIZER, grammar.source(), log_level=0)
    assert not made.is_error(), made.get_error().split("<state>")[0]
    return made


def allows(grammar: Grammar, text: str) -> bool:
    """Whether a grammar allows a text, whole."""
    trying = matcher(grammar)
    data = list(text.encode())
    return trying.try_consume_tokens(data) == len(data) and trying.is_accepting()


def begins(grammar: Grammar, text: str) -> bool:
    """Whether a text that a grammar allows may begin so."""
    data = list(text.encode())
    return matcher(grammar).try_consume_tokens(data) == len(data)


def sample(grammar: Grammar, chance: random.Random, most: int = 2000) -> str | None:
    """A random text that a grammar allows; None when it is not over after so many bytes.

    What ends things is taken more often than chance would: closing a string, an array, an object, the text.
    """
    sampling = matcher(grammar)
    text = bytearray()
    while len(text) < most:
        mask = sampling.compute_bitmask()
        assert not sampling.is_error(), sampling.get_error().split("<state>")[0]
        allowed = [token for token in range(_EOS + 1) if mask[token >> 3] >> (token & 7) & 1]
        assert allowed, f"nothing may follow {bytes(text)!r}"
        token = _choose(allowed, chance)
        if token == _EOS:
            return text.decode()
        assert sampling.consume_token(token)
        text.append(token)
    return None


def _choose(allowed: list[int], chance: random.Random) -> int:
    likely = [token for token in allowed if token == _EOS or chr(token) in '"]}']
    if likely and chance.random() < 0.3:
        return chance.choice(likely)
    letters = [token for token in allowed if chr(token).isalnum() or token > 127]
    return chance.choice(letters if letters and chance.random() < 0.7 else allowed)
