"""Weights kept in the blocks of a GGUF file: codes, scales and minima as they stand there, in rows of 16 side by side.

N output features, K input features of a weight.
"""

from app.kernels.blocks.layout import LAYOUTS, BlockLayout, row_bytes
from app.kernels.blocks.pack import allocate_blocks, new_block_weight, pack_blocks, pack_rows

__all__ = [
    "LAYOUTS",
    "BlockLayout",
    "allocate_blocks",
    "new_block_weight",
    "pack_blocks",
    "pack_rows",
    "row_bytes",
]
