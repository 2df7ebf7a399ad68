"""How a tokenizer spells text that a grammar forces: the tokens that a model was trained to write it with."""

from __future__ import annotations

from app.contract.frames import Vocabulary

_MARK = "\x02"
"""Stands before a text whose tokenizer would put a space there: the space comes before the mark."""


class CanonicalSpelling:
    """Token ids of bytes, by the tokenizer's definition.

    Text that it would change, and bytes that are no text, are spelled by the longest tokens from the left. Control
    tokens are never used: text that looks like one is text.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(vocabulary.definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._bytes = vocabulary.token_bytes[:vocab_size]
        self._ids: dict[bytes, int] = {}
        self._longest = 0
        self._mark = "" if self._joined(self._encode("a")) == b"a" else _MARK

    def __call__(self, data: bytes) -> list[int]:
        try:
            token_ids = self._without_mark(self._encode(self._mark + data.decode()))
        except UnicodeDecodeError:
            return self._greedy(data)
        return token_ids if self._joined(token_ids) == data else self._greedy(data)

    def _encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

    def _joined(self, token_ids: list[int]) -> bytes | None:
        """Bytes of all tokens; None if there is one that the logits do not have."""
        if any(token_id >= len(self._bytes) for token_id in token_ids):
            return None
        return b"".join(self._bytes[token_id] for token_id in token_ids)

    def _without_mark(self, token_ids: list[int]) -> list[int]:
        if not self._mark:
            return token_ids
        head = b""
        for index, token_id in enumerate(token_ids):
            if head.endswith(_MARK.encode()):
                return token_ids[index:]
            head += self._bytes[token_id] if token_id < len(self._bytes) else b""
        return []

    def _greedy(self, data: bytes) -> list[int]:
        if not self._ids:
            self._ids = {token: token_id for token_id, token in enumerate(self._bytes) if token}
            self._longest = max(map(len, self._ids), default=1)
        token_ids, start = [], 0
        while start < len(data):
            for end in range(min(len(data), start + self._longest), start, -1):
                if (token_id := self._ids.get(data[start:end])) is not None:
                    break
            else:
                break  # the rest cannot be spelled, so it is not forced
            token_ids.append(token_id)
            start = end
        return token_ids
