"""The launches of row-wise ops that no step in ``step_variants`` has; see ``compiling``."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.embed import embed
from app.kernels.gpu.launch import Launch, collecting
from app.kernels.layer_norm import layer_norm
from app.kernels.norm_add_norm import norm_add_norm
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import Act, LayerKVCache
from tests.aot import compiling

META = torch.device("meta")
TOKENS, VOCAB, POSITIONS, BLOCK = 100, 50257, 1024, 16
WIDTHS = (640, 768, 2560, 5376)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def write(heads: int, kv_heads: int, width: int, rotary_dim: int, *, int8: bool, normed: bool) -> None:
    pages = (64, 2, kv_heads, BLOCK)
    values = empty(*pages, width, dtype=torch.int8 if int8 else torch.bfloat16)
    norms = [empty(width, dtype=torch.float32) if normed else None for _ in range(2)]
    qk_norm_rope_kv_write(
        empty(TOKENS, (heads + 2 * kv_heads) * width),
        empty(TOKENS, dtype=torch.int64),
        empty(POSITIONS, rotary_dim, dtype=torch.float32) if rotary_dim else None,
        LayerKVCache(values, empty(*pages, dtype=torch.float16) if int8 else None),
        empty(TOKENS, dtype=torch.int64),
        empty(TOKENS, heads, width),
        q_norm=norms[0],
        k_norm=norms[1],
    )


def launches() -> list[Launch]:
    """Norms into both formats, embeddings with scale and positions, and heads that are turned in part or not at all."""
    with collecting() as collected:
        for width in WIDTHS:
            x, residual, weight = empty(TOKENS, width), empty(TOKENS, width), empty(width, dtype=torch.float32)
            for out in (
                Act(empty(TOKENS, width)),
                Act(empty(TOKENS, width, dtype=torch.int8), empty(TOKENS, 1, dtype=torch.float32)),
            ):
                norm_add_norm(x, weight, residual, weight, 1e-6, out)
                layer_norm(x, empty(width), empty(width), 1e-5, out)
                layer_norm(x, empty(width), empty(width), 1e-5, out, residual=residual)
            ids, table = empty(TOKENS, dtype=torch.int64), empty(VOCAB, width)
            embed(ids, table, x, scale=width**0.5)
            embed(ids, table, x, positions_T=ids, position_table_PD=empty(POSITIONS, width))
        for int8 in (False, True):
            write(4, 1, 256, 256, int8=int8, normed=True)
            write(32, 8, 128, 32, int8=int8, normed=False)
            write(12, 12, 64, 0, int8=int8, normed=False)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
