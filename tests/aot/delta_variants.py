"""The launches of gated-delta-rule layers of several shapes; see ``compiling``."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from app.kernels.causal_conv import causal_conv
from app.kernels.gated_delta import gated_delta
from app.kernels.gated_norm import gated_norm
from app.kernels.gpu.launch import Launch, collecting
from app.kernels.sigmoid_mul import sigmoid_mul
from app.kernels.types import Act, AttentionMetadata, LayerState
from tests.aot import compiling

META = torch.device("meta")
SHAPES = ((16, 32, 128, 128), (16, 16, 128, 128), (4, 8, 64, 64), (2, 2, 96, 256), (2, 4, 256, 256))
"""Key heads, value heads and their widths."""
ROWS, BLOCK = 4, 16


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def act(tokens: int, width: int, *, int8: bool) -> Act:
    if int8:
        return Act(empty(tokens, width, dtype=torch.int8), empty(tokens, 1, dtype=torch.float32))
    return Act(empty(tokens, width))


def step(tokens: int, max_query_len: int) -> AttentionMetadata:
    return AttentionMetadata(
        query_start_loc=empty(ROWS + 1, dtype=torch.int32),
        seq_lens=empty(ROWS, dtype=torch.int32),
        block_tables=empty(ROWS, 64, dtype=torch.int32),
        slot_mapping=empty(tokens, dtype=torch.int64),
        max_query_len=max_query_len,
        max_seq_len=1000,
    )


def call(key_heads: int, heads: int, k_dim: int, v_dim: int, meta: AttentionMetadata, dtype: torch.dtype) -> None:
    tokens, inner = meta.slot_mapping.numel(), heads * v_dim
    channels = 2 * key_heads * k_dim + inner
    fused = empty(tokens, channels + inner + 2 * heads, dtype=dtype)
    conv = empty(32, 3, channels, dtype=dtype)
    state = LayerState(conv, empty(32, heads, k_dim, v_dim, dtype=torch.float32), BLOCK)
    qkv, mixed = empty(tokens, channels, dtype=dtype), empty(tokens, inner, dtype=dtype)
    gates = fused[:, channels + inner :]
    per_head = empty(heads, dtype=torch.float32)
    causal_conv(fused[:, :channels], empty(4, channels, dtype=torch.float32), state, meta, qkv)
    gated_delta(qkv, gates[:, :heads], gates[:, heads:], per_head, per_head, state, meta, mixed)
    z = fused[:, channels : channels + inner]
    for int8 in (False, True):
        gated_norm(mixed, empty(v_dim, dtype=torch.float32), z, 1e-6, act(tokens, inner, int8=int8))
        sigmoid_mul(mixed, z, act(tokens, inner, int8=int8))


def launches() -> list[Launch]:
    """Of bf16, decodes alone and beside prompts; of the most usual shape fp32 too."""
    with collecting() as collected:
        for shape, (tokens, longest) in itertools.product(SHAPES, ((ROWS, 1), (200, 100))):
            call(*shape, step(tokens, longest), torch.bfloat16)
        call(*SHAPES[0], step(200, 100), torch.float32)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
