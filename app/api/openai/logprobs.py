"""Log-probabilities in the two shapes of the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Sequence

from app.api.json import finite
from app.api.openai.schemas.chat import ChatLogprob, ChatLogprobs, TopLogprob
from app.api.openai.schemas.completions import CompletionLogprobs
from app.serving.types import TokenLogprob
from app.text.detokenizer import IncrementalDetokenizer


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """The shape of chat."""
    return ChatLogprobs([_chat_logprob(token) for token in tokens])


def _chat_logprob(token: TokenLogprob) -> ChatLogprob:
    top = [TopLogprob(other.text, list(other.bytes), finite(other.logprob)) for other in token.top]
    return ChatLogprob(token.text, list(token.bytes), finite(token.logprob), top)


class TextOffsets:
    """Where each token's text begins: in characters, of the text as the client gets it."""

    def __init__(self, detokenizer: IncrementalDetokenizer, start: int = 0) -> None:
        self._detokenizer = detokenizer
        self._next = start

    def advance(self, tokens: Sequence[TokenLogprob]) -> list[int]:
        """Takes the next tokens and returns their offsets. Tokens that share a character share its offset."""
        offsets = []
        for token in tokens:
            offsets.append(self._next)
            self._next += len(self._detokenizer.push([token.token_id]))
        return offsets


def completion_logprobs(tokens: Sequence[TokenLogprob], offsets: list[int]) -> CompletionLogprobs:
    """The shape of completions."""
    return CompletionLogprobs(
        text_offset=offsets,
        token_logprobs=[None if token.logprob is None else finite(token.logprob) for token in tokens],
        tokens=[token_key(token) for token in tokens],
        top_logprobs=[None if token.logprob is None else _top_dict(token) for token in tokens],
    )


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The lists of two stretches of text, one after the other."""
    return CompletionLogprobs(
        text_offset=first.text_offset + second.text_offset,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        tokens=first.tokens + second.tokens,
        top_logprobs=first.top_logprobs + second.top_logprobs,
    )


def token_key(token: TokenLogprob) -> str:
    r"""A token as text; ``bytes:\xe4\xb8`` if it is no whole number of characters."""
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def _top_dict(token: TokenLogprob) -> dict[str, float]:
    """The alternatives and always the token itself, each under a name of its own.

    Tokens of different ids may look alike; all but the actual one and the likeliest are then called by their id.
    """
    key = token_key(token)
    named: dict[str, float] = {}
    for other in token.top:
        name = token_key(other)
        if (name == key and other.token_id != token.token_id) or name in named:
            name = f"token_id:{other.token_id}"
        named[name] = finite(other.logprob)
    named[key] = finite(token.logprob)
    return named
