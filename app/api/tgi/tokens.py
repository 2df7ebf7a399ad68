"""Tokens of an answer in the shape of text-generation-inference."""

from __future__ import annotations

from app.api.json import finite
from app.api.tgi.schemas import PrefillToken, Token
from app.serving.generation import Completion
from app.serving.types import ChoiceDelta, TokenLogprob
from app.text.detokenizer import IncrementalDetokenizer
from app.text.tokenizer import Tokenizer


class TokenWriter:
    """Writes the tokens of one answer: texts that add up to the generated text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._excess = 0
        """Characters of tokens' texts that are not released yet: a stop string may end in the middle of a token."""

    def tokens(self, part: ChoiceDelta | Completion) -> list[Token]:
        """The next tokens of the answer, all but the last one of which are wholly part of its text."""
        texts = [self._detokenizer.push([token.token_id]) for token in part.tokens]
        self._excess += sum(map(len, texts)) - len(part.text)
        if part.finish_reason is not None and texts:
            # What a control token adds is never shown, so whatever is amiss belongs to the token before it.
            last = max((place for place, token in enumerate(part.tokens) if not self._is_special(token)), default=0)
            whole = texts[last] + self._detokenizer.flush()  # U+FFFD for an unfinished character
            texts[last] = whole[: len(texts[last]) - self._excess]
        return [self._token(token, text) for token, text in zip(part.tokens, texts, strict=True)]

    def top_tokens(self, token: TokenLogprob) -> list[Token]:
        """The likeliest tokens at a token's place."""
        return [self._token(other, other.text) for other in token.top]

    def _token(self, token: TokenLogprob, text: str) -> Token:
        special = self._is_special(token)
        return Token(
            id=token.token_id, text=token.text if special else text, logprob=finite(token.logprob), special=special
        )

    def _is_special(self, token: TokenLogprob) -> bool:
        return self._tokenizer.is_special(token.token_id)


def prefill_token(token: TokenLogprob) -> PrefillToken:
    """A token of the inputs."""
    return PrefillToken(
        id=token.token_id, text=token.text, logprob=None if token.logprob is None else finite(token.logprob)
    )
