"""Names of tokens in the dictionaries of completions."""

from __future__ import annotations

import math

from app.api.json import LOWEST
from app.api.openai.logprobs import TextOffsets, chat_logprobs, completion_logprobs, token_key
from app.serving.types import TokenLogprob
from app.text.detokenizer import IncrementalDetokenizer
from tests.byte_tokenizer import EOS_ID
from tests.serving.rig import byte_tokenizer


def token(token_id: int, data: bytes, logprob: float | None, *top: TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token_id, data.decode(errors="replace"), data, logprob, None, list(top))


def test_undecodable_tokens_are_named_by_their_bytes() -> None:
    assert token_key(token(1, b"\xe4\xbd", -1.0)) == r"bytes:\xe4\xbd"
    assert token_key(token(1, "好".encode(), -1.0)) == "好"


def test_tokens_that_look_alike_do_not_collide() -> None:
    alike = [token(7, b"a", -0.5), token(8, b"a", -1.0), token(9, b"a", -2.0), token(10, b"b", -3.0)]
    actual = token(8, b"a", -1.0, *alike)
    (top,) = completion_logprobs([actual], [0]).top_logprobs
    assert top == {"token_id:7": -0.5, "a": -1.0, "token_id:9": -2.0, "b": -3.0}


def test_the_actual_token_is_always_there() -> None:
    actual = token(99, b"z", -9.0, token(97, b"a", -0.1), token(98, b"b", -0.2))
    (top,) = completion_logprobs([actual], [0]).top_logprobs
    assert top == {"a": -0.1, "b": -0.2, "z": -9.0}


def test_minus_infinity_becomes_a_number() -> None:
    actual = token(97, b"a", -math.inf, token(98, b"b", -math.inf))
    logprobs = completion_logprobs([actual], [0])
    assert logprobs.token_logprobs == [LOWEST]
    assert logprobs.top_logprobs == [{"b": LOWEST, "a": LOWEST}]
    (chat,) = chat_logprobs([actual]).content
    assert (chat.logprob, chat.top_logprobs[0].logprob) == (LOWEST, LOWEST)


def test_offsets_count_characters_of_the_text() -> None:
    data = "aé好".encode()
    tokens = [token(byte, bytes([byte]), -1.0) for byte in data]
    tokens.insert(1, token(EOS_ID, b"</s>", -1.0))  # not part of the text
    offsets = TextOffsets(IncrementalDetokenizer(byte_tokenizer()), 10)
    assert offsets.advance(tokens) == [10, 11, 11, 11, 12, 12, 12]
