"""Random blocks as files have them."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from app.kernels.blocks import LAYOUTS, new_block_weight, pack_blocks
from app.kernels.blocks.pack import allocate_blocks
from app.kernels.linear.pack import pack_bias
from app.kernels.types import BlockWeight
from tests.kernels.util import randn

HALVES = {"Q6_K": (208,), **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)), "MXFP4": ()}
"""Where the fp16 numbers of a block begin; otherwise at its own beginning alone."""
TYPES = tuple(LAYOUTS)


def random_blocks(name: str, n: int, k: int, seed: int = 0) -> Tensor:
    """[n, bytes of a row] uint8, its numbers near 0.02."""
    layout, generator = LAYOUTS[name], np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (n, k // layout.block, layout.file_bytes), dtype=np.uint8)
    for at in HALVES.get(name, (0,)):
        halves = (generator.standard_normal(blocks.shape[:2]) * 0.02).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    if name == "MXFP4":
        blocks[..., 0] = generator.integers(118, 126, blocks.shape[:2])
        blocks[0, 0, 0], blocks[-1, -1, 0] = 0, 1
    return torch.from_numpy(blocks.reshape(n, -1))


def values_of(name: str, blocks: Tensor) -> Tensor:
    """fp32 values as the gguf package has them."""
    return torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[name]))


def make_block_weight(
    name: str, n: int, k: int, *, gate_up: bool = False, bias: bool = True, seed: int = 2
) -> tuple[BlockWeight, Tensor]:
    """A weight of one type, and its values."""
    weight, blocks = new_block_weight(n, k, bias=bias, gate_up=gate_up), random_blocks(name, n, k, seed)
    assert allocate_blocks(weight, {(0, n): name})
    pack_blocks(weight, 0, name, blocks)
    if bias:
        pack_bias(weight, 0, randn(n, seed=3))
    return weight, values_of(name, blocks)
