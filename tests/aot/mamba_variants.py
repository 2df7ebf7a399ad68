"""The launches of Mamba-2 mixers of several shapes; see ``compiling``."""

from __future__ import annotations

import itertools

import torch

from app.kernels.causal_conv import causal_conv
from app.kernels.gpu.launch import Launch, collecting
from app.kernels.selective_scan import selective_scan
from app.kernels.silu_gate import silu_gate
from app.kernels.types import AttentionMetadata, LayerState
from tests.aot import compiling
from tests.aot.delta_variants import BLOCK, ROWS, act, empty, step

SHAPES = ((1, 128, 128, 64), (1, 48, 128, 64), (2, 24, 256, 128), (1, 24, 256, 64), (4, 8, 96, 32))
"""Groups, heads, and the two widths of a head's state."""


def call(groups: int, heads: int, k_dim: int, v_dim: int, meta: AttentionMetadata, dtype: torch.dtype) -> None:
    tokens, inner = meta.slot_mapping.numel(), heads * v_dim
    channels = inner + 2 * groups * k_dim
    projected = empty(tokens, inner + channels + heads, dtype=dtype)
    conv = empty(32, 3, channels, dtype=dtype)
    state = LayerState(conv, empty(32, heads, k_dim, v_dim, dtype=torch.float32), BLOCK)
    xbc, mixed = empty(tokens, channels, dtype=dtype), empty(tokens, inner, dtype=dtype)
    per_head, bias = empty(heads, dtype=torch.float32), empty(channels, dtype=torch.float32)
    inputs, dt = projected[:, inner : inner + channels], projected[:, inner + channels :]
    causal_conv(inputs, empty(4, channels, dtype=torch.float32), state, meta, xbc, bias_C=bias)
    selective_scan(xbc, dt, per_head, per_head, per_head, state, meta, mixed)
    for int8, weight in itertools.product((False, True), (empty(inner, dtype=torch.float32), None)):
        out = act(tokens, inner, int8=int8)
        silu_gate(mixed, projected[:, :inner], out, weight_N=weight, groups=groups, eps=1e-6)


def launches() -> list[Launch]:
    """Of bf16, decodes alone and beside prompts; of the most usual shape fp32 too."""
    with collecting() as collected:
        for shape, (tokens, longest) in itertools.product(SHAPES, ((ROWS, 1), (200, 100))):
            call(*shape, step(tokens, longest), torch.bfloat16)
        call(*SHAPES[0], step(200, 100), torch.float32)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
