"""What the server is asked: synthetic prompts that no cache has seen, or lines of a file."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from app.bench.options import BenchError

# Common words, each one token (with the space before it) in the usual vocabularies.
_WORD_LIST = (
    "about after again all also always another answer area around ask away back because become been before begin "
    "between big book both boy bring build business call came change children city close come could country course "
    "cut day different does door down each early earth end enough even every example eye face family far father feet "
    "few find first follow food form found four friend from give good government great group grow hand hard head hear "
    "help here high home hope hour house idea important keep kind know land large last later learn leave left letter "
    "life light line list little live long look made make man many mean men might mile money more most mother mountain "
    "move much music must name near need never next night nothing number often old once only open order other own page "
    "paper part people place plan plant play point power problem public question read real right river room run school "
    "sea second seem sentence set show side small social some song sound spell stand start state still stop story "
    "student study such sun table take talk tell thing think three time together took tree try turn under until use "
    "very walk want war watch water way week well went white whole why will without woman word work world would write "
    "year young"
)
_WORDS = _WORD_LIST.split()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's prompt, and how long its answer may be."""

    content: str | list[int]
    """Text, or token ids."""
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class SyntheticPrompts:
    """Random prompts; the lengths are gone through side by side, over and over."""

    kind: Literal["words", "ids"]
    input_len: Sequence[int]
    """Words (about a token each) or token ids, without the prefix."""
    output_len: Sequence[int]
    prefix_len: int
    """Words or ids that all prompts begin with."""
    id_range: tuple[int, int]

    def generate(self, seed: str) -> Iterator[Prompt]:
        """Prompts without end. Those of different seeds share nothing, their prefix included."""
        prefix = self._draw(f"{seed}/prefix", self.prefix_len)
        for index in itertools.count():
            own = self._draw(f"{seed}/{index}", self.input_len[index % len(self.input_len)])
            ids = [*prefix, *own]
            content = ids if self.kind == "ids" else " ".join(_WORDS[i] for i in ids)
            yield Prompt(content, self.output_len[index % len(self.output_len)])

    def _draw(self, seed: str, length: int) -> list[int]:
        rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        return rng.choices(range(*self.id_range) if self.kind == "ids" else range(len(_WORDS)), k=length)


class _Line(msgspec.Struct, frozen=True):
    prompt: str | list[int]
    max_tokens: int | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Reads a JSONL file.

    Raises:
        BenchError: it cannot be read, a line is not of the shape, or there is no line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise BenchError(f"{path}: {e.strerror or e}") from None
    prompts = [_read_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise BenchError(f"{path}: no prompts")
    return prompts


def _read_line(path: Path, number: int, line: bytes) -> Prompt:
    try:
        read = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as e:
        raise BenchError(f"{path}, line {number}: {e}") from None
    return Prompt(read.prompt, read.max_tokens)
