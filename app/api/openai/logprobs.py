"""Log-probabilities in the two shapes of the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.api.json import finite
from app.api.openai.schemas.chat import ChatLogprob, ChatLogprobs, TopLogprob
from app.api.openai.schemas.completions import CompletionLogprobs
from app.api.openai.schemas.generation import PromptLogprob, PromptLogprobs
from app.serving.types import TokenLogprob
from app.text.detokenizer import IncrementalDetokenizer


def chat_logprobs(tokens: Sequence[TokenLogprob], *, as_ids: bool = False) -> ChatLogprobs:
    """The shape of chat.

    Args:
        as_ids: tokens are named by their ids.
    """
    return ChatLogprobs([_chat_logprob(token, as_ids=as_ids) for token in tokens])


def _chat_logprob(token: TokenLogprob, *, as_ids: bool) -> ChatLogprob:
    def name(token: TokenLogprob) -> str:
        return id_name(token) if as_ids else token.text

    top = [TopLogprob(name(other), list(other.bytes), finite(other.logprob)) for other in token.top]
    return ChatLogprob(name(token), list(token.bytes), finite(token.logprob), top)


def prompt_logprobs(tokens: Sequence[TokenLogprob], top: int) -> PromptLogprobs:
    """The shape of a prompt's log-probabilities.

    Args:
        top: number of the most likely tokens that are reported of those that there are.
    """
    return [None if token.logprob is None else _by_id([token, *token.top[:top]]) for token in tokens]


def _by_id(tokens: Sequence[TokenLogprob]) -> dict[str, PromptLogprob]:
    """Log-probabilities of one place; of a token that comes twice the first."""
    found: dict[str, PromptLogprob] = {}
    for token in tokens:
        described = PromptLogprob(logprob=finite(token.logprob), rank=token.rank, decoded_token=token.text)
        found.setdefault(str(token.token_id), described)
    return found


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


def completion_logprobs(
    tokens: Sequence[TokenLogprob], offsets: list[int], *, top: int | None = None, as_ids: bool = False
) -> CompletionLogprobs:
    """The shape of completions.

    Args:
        offsets: where each token begins in the text.
        top: number of the most likely tokens that are reported of those that there are; None: all.
        as_ids: tokens are named by their ids.
    """
    name = id_name if as_ids else token_key
    return CompletionLogprobs(
        text_offset=offsets,
        token_logprobs=[None if token.logprob is None else finite(token.logprob) for token in tokens],
        tokens=[name(token) for token in tokens],
        top_logprobs=[None if token.logprob is None else _top_dict(token, token.top[:top], name) for token in tokens],
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


def id_name(token: TokenLogprob) -> str:
    """A token by its id."""
    return f"token_id:{token.token_id}"


def _top_dict(
    token: TokenLogprob, top: Sequence[TokenLogprob], name_of: Callable[[TokenLogprob], str]
) -> dict[str, float]:
    """The alternatives and always the token itself, each under a name of its own.

    Tokens of different ids may look alike; all but the actual one and the likeliest are then called by their id.
    """
    key = name_of(token)
    named: dict[str, float] = {}
    for other in top:
        name = name_of(other)
        if (name == key and other.token_id != token.token_id) or name in named:
            name = id_name(other)
        named[name] = finite(other.logprob)
    named[key] = finite(token.logprob)
    return named
