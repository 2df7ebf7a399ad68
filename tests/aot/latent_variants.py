"""The launches of attention over latents, of the shapes of DeepSeek-V2-Lite, DeepSeek-V3 and MiniCPM3; see
``compiling``."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from app.kernels.gpu.launch import Launch, collecting
from app.kernels.head_linear import head_linear
from app.kernels.latent_attention import latent_attention
from app.kernels.latent_write import latent_write
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.types import AttentionMetadata, LayerLatents
from tests.aot import compiling

META = torch.device("meta")
SHAPES = ((16, 512, 64, 128, 128), (128, 512, 64, 128, 128), (40, 256, 32, 64, 64))
"""Heads, elements of a latent, rotated ones, others of a query, elements of a value."""
STEPS = ((4, 1, 4000), (4, 1, 20), (600, 1, 20), (200, 100, 1000))
"""Tokens, the longest row's, and the longest sequence's: decodes that share splits, that do not, and prompts."""
BLOCK = 16


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def call(shape: tuple[int, int, int, int, int], step: tuple[int, int, int], dtype: torch.dtype) -> None:
    heads, rank, rotary, nope, v_dim = shape
    tokens, longest_row, longest = step
    rows = tokens if longest_row == 1 else 4
    meta = AttentionMetadata(
        query_start_loc=empty(rows + 1, dtype=torch.int32),
        seq_lens=empty(rows, dtype=torch.int32),
        block_tables=empty(rows, 256, dtype=torch.int32),
        slot_mapping=empty(tokens, dtype=torch.int64),
        max_query_len=longest_row,
        max_seq_len=longest,
        split_workspace=new_split_workspace(rows, heads, 1, rank, META),
    )
    q, absorbed = empty(tokens, heads, nope + rotary, dtype=dtype), empty(tokens, heads, rank + rotary, dtype=dtype)
    pages, out = LayerLatents(empty(64, BLOCK, rank + rotary, dtype=dtype)), empty(tokens, heads, rank, dtype=dtype)
    for interleaved in (True, False):
        latent_write(
            empty(tokens, rank + rotary, dtype=dtype),
            empty(rank, dtype=dtype),
            1e-6,
            q[..., nope:],
            empty(tokens, dtype=torch.int64),
            empty(4096, rotary, dtype=torch.float32),
            pages,
            meta.slot_mapping,
            absorbed[..., rank:],
            interleaved=interleaved,
        )
    head_linear(q[..., :nope], empty(heads, nope, rank, dtype=dtype), absorbed[..., :rank])
    latent_attention(absorbed, pages, meta, out, scale=0.1)
    head_linear(out, empty(heads, rank, v_dim, dtype=dtype), empty(tokens, heads, v_dim, dtype=dtype))


def launches() -> list[Launch]:
    """Of bf16; of the smallest model fp32 too."""
    with collecting() as collected:
        for shape, step in itertools.product(SHAPES, STEPS):
            call(shape, step, torch.bfloat16)
        for step in (STEPS[0], STEPS[-1]):
            call(SHAPES[0], step, torch.float32)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
