"""Token ids to text as they are generated."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from app.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Text of one growing sequence of tokens; constant work a token.

    What is returned is final: bytes that may yet become a character are held back, at most three of them. The pieces
    together are :meth:`Tokenizer.decode` of all ids.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        *,
        starts_text: bool = False,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """
        Args:
            skip_special_tokens: leave control tokens out of the text, but for ``shown``.
            starts_text: the ids are a whole text. By default they go on from a prompt, and keep the leading space that
                some tokenizers put before the first word of a text.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._spaces_to_drop = tokenizer.leading_spaces if starts_text else 0

    def push(self, token_ids: Iterable[int]) -> str:
        """Takes the next tokens and returns the text that they complete."""
        data = self._tokenizer.join_bytes(token_ids, skip_special_tokens=self._skip_special_tokens, shown=self._shown)
        while data and self._spaces_to_drop:
            stripped = data.removeprefix(b" ")
            self._spaces_to_drop = self._spaces_to_drop - 1 if stripped != data else 0
            data = stripped
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Ends the text: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
