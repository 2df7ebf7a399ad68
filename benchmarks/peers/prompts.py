"""Prompts of exact token counts, cut from the language reference that comes with Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

FILLER = " the"
"""One token in the vocabularies of interest; makes up for a word that would be a token too long."""
_MIN_LETTERS = 0.85
"""Share of letters and spaces from which a paragraph counts as prose: tables and code are left out."""
_MIN_LENGTH = 80

Count = Callable[[str], int]
"""Tokens of a text."""


class PromptError(Exception):
    """The text cannot be cut as asked; the message is one line."""


def reference_text() -> list[str]:
    """The words of ``help()``'s topics, prose only; the same for everybody with the same Python."""
    from pydoc_data.topics import topics

    paragraphs = itertools.chain.from_iterable(topics[key].split("\n\n") for key in sorted(topics))
    unique = dict.fromkeys(" ".join(paragraph.split()) for paragraph in paragraphs)
    return [word for paragraph in unique if _is_prose(paragraph) for word in paragraph.split()]


def _is_prose(text: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in text)
    return len(text) > _MIN_LENGTH and letters > _MIN_LETTERS * len(text)


class Cutter:
    """Cuts consecutive pieces off a text; none shares its words with another until the text has run out."""

    def __init__(self, words: Sequence[str], count: Count) -> None:
        """
        Args:
            count: tokens of a text, special tokens not added.
        """
        self._words = words
        self._count = count
        self._position = 0

    def skip(self, words: int) -> None:
        """Leaves out so many words."""
        self._position += words

    def cut(self, tokens: int, prefix: str = "") -> str:
        """The next piece.

        Args:
            tokens: exact length of ``prefix`` and piece together.
            prefix: text that it is to be appended to, after a space.

        Returns:
            ``prefix`` and piece.

        Raises:
            PromptError: the tokenizer has no way to make that length.
        """
        text = prefix
        while True:
            word = self._words[self._position % len(self._words)]
            longer = f"{text} {word}" if text else word
            if self._count(longer) > tokens:
                break
            text = longer
            self._position += 1
        self._position += 1
        while (length := self._count(text)) < tokens:
            text += FILLER
        if length != tokens:
            raise PromptError(f"no text of exactly {tokens} tokens: the filler {FILLER!r} takes more than one")
        return text


@dataclass(frozen=True)
class RoundPrompts:
    """What one round asks. Every system is asked the same; no round shares a prompt's beginning with another."""

    warmup: tuple[str, ...]
    single: tuple[str, ...]
    """Prompts of workload W1, one after the other."""
    many: tuple[str, ...]
    """Prompts of workload W2, many at once."""
    long: str
    """Prompts of workload W3, long ones."""
    shared: tuple[str, ...]
    """Prompts of workload W4, with one prefix."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of requests and of tokens. The defaults are the workloads as published; tests and trials shrink them."""

    single: int = 4
    many: int = 48
    concurrency: int = 16
    prompt: int = 128
    output: int = 128
    long: int = 1024
    prefix: int = 512
    suffix: int = 32
    shared: int = 16
    shared_output: int = 32


def rounds(words: Sequence[str], count: Count, sizes: Sizes) -> Iterator[RoundPrompts]:
    """Prompts of one round after the other, without end.

    A text that is too short is gone through again, each time from other cuts on, for which a word is skipped.
    """
    cutter = Cutter(words, count)
    while True:
        yield RoundPrompts(
            warmup=tuple(_cuts(cutter, sizes.concurrency + 1, sizes.prompt)),
            single=tuple(_cuts(cutter, sizes.single, sizes.prompt)),
            many=tuple(_cuts(cutter, sizes.many, sizes.prompt)),
            long=cutter.cut(sizes.long),
            shared=tuple(_shared(cutter, sizes)),
        )
        cutter.skip(1)


def _cuts(cutter: Cutter, number: int, tokens: int) -> Iterable[str]:
    return (cutter.cut(tokens) for _ in range(number))


def _shared(cutter: Cutter, sizes: Sizes) -> Iterator[str]:
    prefix = cutter.cut(sizes.prefix)
    for _ in range(sizes.shared):
        yield cutter.cut(sizes.prefix + sizes.suffix, prefix)
