"""The formats of checkpoints, a row each; a format's module is imported when a file of it is read (torch-free).

Nothing here unpickles: other formats are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from app.checkpoints.header import WeightError

if TYPE_CHECKING:
    from app.checkpoints.base import Tensors

_HEAD = 16
"""Bytes at a file's beginning that tell its format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format of checkpoints."""

    suffix: str
    """Usual end of its files' names."""
    begins: Callable[[bytes], bool]
    """Tells whether a file with these first bytes is of the format."""
    module: str
    """The module that reads it with torch; has a function ``tensors``."""

    @property
    def tensors(self) -> Tensors:
        """The function that lists the tensors of a file."""
        return cast("Tensors", import_module(self.module).tensors)


# The length of a JSON object, then the object.
SAFETENSORS = Format(suffix=".safetensors", begins=lambda head: head[8:9] == b"{", module="app.checkpoints.safetensors")
GGUF = Format(suffix=".gguf", begins=lambda head: head[:4] == b"GGUF", module="app.checkpoints.gguf")
FORMATS = (SAFETENSORS, GGUF)


def format_of(file: Path) -> Format:
    """The format of a file: what its first bytes say, or else its name.

    Raises:
        WeightError: it is of none of the formats.
    """
    found = format_by_content(file) or next((row for row in FORMATS if file.suffix.lower() == row.suffix), None)
    if found is not None:
        return found
    raise WeightError(f"{file}: only {' and '.join(row.suffix for row in FORMATS)} files are read")


def format_by_content(file: Path) -> Format | None:
    """The format that a file's first bytes tell; None where they tell none, or cannot be read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError:
        return None
    return next((row for row in FORMATS if row.begins(head)), None)
