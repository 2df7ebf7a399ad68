"""The launches of attention over packed sequences and of pooling; see ``compiling``."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from app.kernels.gpu.launch import Launch, collecting
from app.kernels.packed_attention import packed_attention
from app.kernels.pool import pool
from app.kernels.types import Act, PackedSequences
from tests.aot import compiling

META = torch.device("meta")
SHAPES = ((12, 12, 32), (12, 12, 64), (16, 8, 128), (16, 16, 96), (8, 4, 256))
"""Query heads, KV heads, and their width."""
SEQUENCES, TOKENS = 4, 200


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def launches() -> list[Launch]:
    """Of bf16 and fp32, with and without a window; results floating and int8."""
    sequences = PackedSequences(empty(SEQUENCES + 1, dtype=torch.int32))
    with collecting() as collected:
        for (heads, kv_heads, width), window in itertools.product(SHAPES, (None, 64)):
            for dtype, int8 in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
                inner = heads * width
                qkv = empty(TOKENS, (heads + 2 * kv_heads) * width, dtype=dtype)
                out = Act(empty(TOKENS, inner, dtype=dtype))
                if int8:
                    out = Act(empty(TOKENS, inner, dtype=torch.int8), empty(TOKENS, 1, dtype=torch.float32))
                packed_attention(
                    qkv,
                    sequences,
                    out,
                    heads=heads,
                    kv_heads=kv_heads,
                    scale=0.125,
                    window=window,
                    scratch=empty(TOKENS, inner, dtype=dtype),
                )
        for width, dtype in itertools.product((384, 1024, 4096), (torch.bfloat16, torch.float32)):
            modes = empty(SEQUENCES, dtype=torch.int32)
            pool(empty(TOKENS, width, dtype=dtype), sequences, modes, empty(SEQUENCES, width, dtype=torch.float32))
    return collected


if __name__ == "__main__":
    compiling.main(launches)
