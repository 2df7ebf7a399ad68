"""Fill in the middle: the prompt that asks a model for the text between two others, by the model's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

from app.text.control_tokens import ControlTokens
from app.text.infill_formats import FORMATS, NAMES, InfillFormat, named_format
from app.text.tokenizer import TextOptions, Tokenizer

_MARK = "☺"
"""A character that goes before a text which must not get the space that a tokenizer puts before every text."""


class InfillText(NamedTuple):
    """The prompt as token ids."""

    token_ids: list[int]
    span: tuple[int, int]
    """Where the tokens of the prefix begin and end among them."""
    offsets: list[int] | None
    """Where the prefix's tokens begin in it, in characters, if asked for."""


class Infill:
    """How one model is asked for the text between a prefix and a suffix.

    Args:
        form: a format whose tokens the tokenizer has.
    """

    def __init__(self, tokenizer: Tokenizer, form: InfillFormat) -> None:
        self._tokenizer = tokenizer
        self._prefix = _ids(tokenizer, form.prefix)
        self._suffix = _ids(tokenizer, form.suffix)
        self._middle = [] if form.middle is None else _ids(tokenizer, form.middle)
        self._suffix_first = form.suffix_first
        # A model's files may name tokens that no row has.
        own = (form.prefix, form.suffix, *([] if form.middle is None else [form.middle]))
        self._spelt = ControlTokens({*tokenizer.special_tokens, *own})
        self.ends: tuple[int, ...] = tuple(token for end in form.ends for token in _ids(tokenizer, end))
        """Tokens that end what is filled in, besides the model's own end of text."""

    @classmethod
    def find(cls, tokenizer: Tokenizer, named: Mapping[str, str]) -> Self | None:
        """How the model of a tokenizer is asked; None if it has no tokens for that.

        Args:
            named: tokens to which the model's files give names.
        """
        prefix, suffix, middle = map(named.get, NAMES)
        forms = [*FORMATS] if prefix is None or suffix is None else [named_format(prefix, suffix, middle), *FORMATS]
        return next((cls(tokenizer, form) for form in forms if _has(tokenizer, form)), None)

    async def encode(
        self,
        prefix: str,
        suffix: str,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        with_offsets: bool = False,
        max_tokens: int | None = None,
        deadline: float | None = None,
    ) -> InfillText:
        """The prompt, made off the event loop where a text is long.

        Args:
            add_special_tokens: add BOS where the model's tokenizer does.
            parse_special: take control tokens that the texts spell for what they say; otherwise these are text, the
                tokens for filling in included.
            with_offsets: note where the prefix's tokens begin in it.
            max_tokens: most tokens of each text that are of use.
            deadline: instant of ``time.monotonic`` up to which the result is of use.

        Raises:
            RequestError: 400, a text is too long or not valid Unicode; 504, the deadline passed.
        """
        tokenizer, given = self._tokenizer, self._options(prefix, parse_special, max_tokens)
        if with_offsets:
            before, offsets = await tokenizer.encode_with_offsets_async(prefix, deadline=deadline, **given)
        else:
            before, offsets = await tokenizer.encode_async(prefix, deadline=deadline, **given), None
        # What a family was trained on has no space before the suffix but its own.
        mark = _MARK if tokenizer.leading_spaces else ""
        given = self._options(mark + suffix, parse_special, max_tokens)
        after = await tokenizer.encode_async(mark + suffix, deadline=deadline, **given)
        if mark:
            marked = tokenizer.encode(mark, add_special_tokens=False)
            after = after[len(marked) :] if after[: len(marked)] == marked else after

        head = [*self._suffix, *after, *self._prefix] if self._suffix_first else self._prefix
        tail = self._middle if self._suffix_first else [*self._suffix, *after, *self._middle]
        token_ids = [*head, *before, *tail]
        if add_special_tokens:
            token_ids = tokenizer.with_added(token_ids)
        start = token_ids.index(head[0]) + len(head)
        return InfillText(token_ids, (start, start + len(before)), offsets)

    def _options(self, text: str, parse_special: bool, max_tokens: int | None) -> TextOptions:
        """How one of the texts is encoded: by the tokenizer that reads control tokens, but for those in the text."""
        breaks = [] if parse_special else sorted({start + 1 for start, _ in self._spelt.find(text)})
        return {"add_special_tokens": False, "parse_special": True, "breaks": breaks, "max_tokens": max_tokens}


def _has(tokenizer: Tokenizer, form: InfillFormat) -> bool:
    tokens = (form.prefix, form.suffix, form.middle)
    return all(token is None or tokenizer.token_id(token) is not None for token in tokens)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    token_id = tokenizer.token_id(text)
    return [] if token_id is None else [token_id]
