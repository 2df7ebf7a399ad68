"""How each type of block lies in memory (torch-free).

A panel is 16 rows of a weight. Of every 32 neighbours along K it holds so many words: a word is 32 bits of each row,
16 rows side by side, 64 bytes. First come the words of all groups, then the scales of all blocks, each field of a
block for 16 rows side by side.

Words of a group: 4 of nibbles, word j with the low halves of neighbours 4 j to 4 j + 3 and, in the high nibbles, of
those 16 further on; then what is more than 4 bits of a code: one word whose byte b has in bit j that of neighbour
4 j + b, or two words with two bits each, of the first and the last 16 neighbours. Or 8 words of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LAYOUT: Final = "panel16"
"""Name of the layout; changes whenever memory filled before could no longer be read."""
GROUP: Final = 32
"""Neighbours along K whose codes lie together."""
PANEL: Final = 16
"""Rows side by side."""
SUPER_BLOCK: Final = 256
"""Neighbours that share the scales of their scales in types ``*_K``."""

Field = tuple[int, int]
"""Bytes of a number, and how many of them a block has."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """A type of block, by the name that GGUF has for it."""

    name: str
    code: int
    """TuiliBlockType."""
    block: int
    """Neighbours along K that are a block of the file."""
    file_bytes: int
    """Bytes of a block in the file."""
    words: int
    """32-bit words of a row's group in memory."""
    fields: tuple[Field, ...]
    """Scales of a row's block in memory, in order."""
    offset: int
    """What a code is more than the integer that it means."""
    has_min: bool = False
    """Whether a minimum is added to the scaled integers."""
    values: tuple[int, ...] = ()
    """Integers that the 4-bit codes of a code book mean."""

    @property
    def scale_bytes(self) -> int:
        """Bytes of a block's scales in memory, of one row."""
        return sum(size * count for size, count in self.fields)

    def row_bytes(self, in_features: int) -> int:
        """Bytes of a row of K in memory."""
        return in_features // GROUP * self.words * 4 + in_features // self.block * self.scale_bytes

    def panel_bytes(self, in_features: int) -> int:
        """Bytes of a panel, rounded up to a cache line."""
        return -(-PANEL * self.row_bytes(in_features) // 64) * 64


_HALF: Final[tuple[Field, ...]] = ((2, 1),)
_HALF_MIN: Final[tuple[Field, ...]] = ((2, 1), (2, 1))
_SUPER: Final[tuple[Field, ...]] = ((2, 1), (2, 1), (1, 8), (1, 8))
_SUPER16: Final[tuple[Field, ...]] = ((2, 1), (1, 16))
_EXPONENT: Final[tuple[Field, ...]] = ((1, 1),)
_IQ4_NL: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_MXFP4: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        BlockLayout("Q4_0", 0, GROUP, 18, 4, _HALF, 8),
        BlockLayout("Q4_1", 1, GROUP, 20, 4, _HALF_MIN, 0, has_min=True),
        BlockLayout("Q5_0", 2, GROUP, 22, 5, _HALF, 16),
        BlockLayout("Q5_1", 3, GROUP, 24, 5, _HALF_MIN, 0, has_min=True),
        BlockLayout("Q8_0", 4, GROUP, 34, 8, _HALF, 128),
        BlockLayout("Q4_K", 5, SUPER_BLOCK, 144, 4, _SUPER, 0, has_min=True),
        BlockLayout("Q5_K", 6, SUPER_BLOCK, 176, 5, _SUPER, 0, has_min=True),
        BlockLayout("Q6_K", 7, SUPER_BLOCK, 210, 6, _SUPER16, 32),
        BlockLayout("IQ4_NL", 8, GROUP, 18, 4, _HALF, 128, values=_IQ4_NL),
        BlockLayout("MXFP4", 9, GROUP, 17, 4, _EXPONENT, 12, values=_MXFP4),
    )
}
"""Types that are kept, by name."""
WHOLE: Final = LAYOUTS["Q8_0"]
"""What is kept of tensors that are stored in no such type."""


def row_bytes(name: str, in_features: int) -> int:
    """Bytes of a row of K in a file's blocks of a type."""
    layout = LAYOUTS[name]
    return in_features // layout.block * layout.file_bytes
