"""Names of the files of a GGUF model that is split: ``NAME-00001-of-00003.gguf`` (torch-free)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from app.checkpoints.header import WeightError

MAX_PARTS: Final = 1 << 10
"""Files of a model, at most: a stranger's file may claim any number."""

_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SplitName:
    """What the name of a part says."""

    stem: str
    """Name of the model."""
    number: int
    """Number of the part, from 1."""
    count: int
    """Number of parts."""


def split_name(path: PurePath) -> SplitName | None:
    """What a file's name says of the model of which it is a part; None: it is of none."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    number, count = int(match["number"]), int(match["count"])
    return SplitName(match["stem"], number, count) if 1 <= number <= count <= MAX_PARTS else None


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files of the model of which ``path`` is one by its name, in order; itself alone, if it is of none.

    Raises:
        WeightError: one is not there; names it.
    """
    name, match = split_name(path), _NAME.fullmatch(path.name)
    if name is None or match is None:
        return (path,)
    parts = tuple(
        path.with_name(f"{name.stem}-{number:05}-of-{match['count']}{match['suffix']}")
        for number in range(1, name.count + 1)
    )
    for number, part in enumerate(parts, start=1):
        if not part.is_file():
            raise WeightError(f"{part}: missing, part {number} of {name.count} of a model")
    return parts
