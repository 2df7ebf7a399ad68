"""The launches of row-wise ops that no step in ``step_variants`` has; see ``compiling``."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.add_norm import add_norm
from app.kernels.embed import embed
from app.kernels.gelu_mul import gelu_mul
from app.kernels.gpu.launch import Launch, collecting
from app.kernels.head_norm_add import head_norm_add
from app.kernels.layer_norm import layer_norm
from app.kernels.norm_add_norm import norm_add_norm
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.scale_logits import scale_logits
from app.kernels.types import Act, LayerKVCache
from tests.aot import compiling

META = torch.device("meta")
TOKENS, VOCAB, POSITIONS, BLOCK = 100, 50257, 1024, 16
WIDTHS = (640, 768, 2560, 5376)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def write(
    heads: int,
    kv_heads: int,
    width: int,
    rotary_dim: int,
    *,
    int8: bool,
    normed: bool = False,
    whole: bool = False,
    scaled: bool = False,
    distance: int | None = None,
    key_is_value: bool = False,
    alone: bool = False,
) -> None:
    pages = (64, 2, kv_heads, BLOCK)
    values = empty(*pages, width, dtype=torch.int8 if int8 else torch.bfloat16)
    cache = LayerKVCache(values, empty(*pages, dtype=torch.float16) if int8 else None)
    count = 0 if alone else kv_heads if key_is_value else 2 * kv_heads
    norms: list[Tensor | None] = [None, None]
    if normed or whole:
        norms = [empty(count * width if whole else width, dtype=torch.float32) for count in (heads, kv_heads)]
    qk_norm_rope_kv_write(
        empty(TOKENS, (heads + count) * width),
        empty(TOKENS, dtype=torch.int64),
        empty(POSITIONS, rotary_dim, dtype=torch.float32) if rotary_dim else None,
        None if alone else cache,
        empty(TOKENS, dtype=torch.int64),
        empty(TOKENS, heads, width),
        q_norm=norms[0],
        k_norm=None if alone else norms[1],
        q_scale_P=empty(POSITIONS, dtype=torch.float32) if scaled else None,
        pair_distance=distance,
        value_norm=distance is not None and not alone,
    )


def launches() -> list[Launch]:
    """Norms into both formats or none, with a factor, embeddings with scale and positions, heads that are turned in
    part or not at all or normed as one vector, queries alone or with factors, keys that are values, inputs of layers,
    and logits with a factor, a cap and both."""
    with collecting() as collected:
        for width in WIDTHS:
            x, residual, weight = empty(TOKENS, width), empty(TOKENS, width), empty(width, dtype=torch.float32)
            for out in (
                Act(empty(TOKENS, width)),
                Act(empty(TOKENS, width, dtype=torch.int8), empty(TOKENS, 1, dtype=torch.float32)),
            ):
                norm_add_norm(x, weight, residual, weight, 1e-6, out)
                norm_add_norm(x, weight, residual, None, 1e-6, out)
                norm_add_norm(x, weight, residual, weight, 1e-6, out, factor=empty(1, dtype=torch.float32))
                add_norm(x, None, 0.0, out)
                add_norm(x, None, 0.0, out, residual=residual)
                layer_norm(x, empty(width), empty(width), 1e-5, out)
                layer_norm(x, empty(width), empty(width), 1e-5, out, residual=residual)
                layer_norm(x, empty(width), None, 1e-5, out, residual=residual)
            ids, table = empty(TOKENS, dtype=torch.int64), empty(VOCAB, width)
            embed(ids, table, x, scale=width**0.5)
            embed(ids, table, x, positions_T=ids, position_table_PD=empty(POSITIONS, width))
        for int8 in (False, True):
            write(4, 1, 256, 256, int8=int8, normed=True)
            write(32, 8, 128, 32, int8=int8)
            write(12, 12, 64, 0, int8=int8)
            write(40, 8, 128, 128, int8=int8, whole=True)
            write(16, 16, 128, 128, int8=int8, whole=True)
            write(32, 8, 128, 128, int8=int8, scaled=True)
            write(8, 1, 512, 128, int8=int8, normed=True, distance=256)
            write(32, 4, 512, 128, int8=int8, normed=True, distance=256, key_is_value=True)
            write(8, 1, 512, 128, int8=int8, normed=True, distance=256, alone=True)
        for width in (256, 8960):
            gated = Act(empty(TOKENS, width, dtype=torch.int8), empty(TOKENS, 1, dtype=torch.float32))
            for act in (Act(empty(TOKENS, width)), gated):
                gelu_mul(empty(TOKENS, width), empty(TOKENS, 8960)[:, :width], act)
        inputs = empty(TOKENS, 8960)
        head_norm_add(inputs, empty(256), inputs, inputs, eps=1e-6, scale=0.5)
        embed(empty(TOKENS, dtype=torch.int64), empty(VOCAB, 8960), inputs, scale=16.0)
        logits = empty(64, VOCAB, dtype=torch.float32)
        scale_logits(logits, scale=0.125)
        scale_logits(logits, softcap=30.0)
        scale_logits(logits, scale=0.125, softcap=30.0)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
