"""The launches of attention at every width of a head; see ``compiling``."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from app.kernels.gpu.launch import Launch, collecting
from app.kernels.paged_attention import paged_attention
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.types import Act, AttentionMetadata, LayerKVCache
from tests.aot import compiling

META = torch.device("meta")
HEADS = ((32, 8), (9, 3))
WIDTHS = (64, 80, 96, 256, 512)
"""128 is that of the steps in ``step_variants``."""
TOKENS, ROWS, BLOCK = 200, 4, 16


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def attend(heads: int, kv_heads: int, width: int, dtype: torch.dtype, *, int8: bool, special: bool = False) -> None:
    """``special``: with all that changes scores and their softmax."""
    pages = (64, 2, kv_heads, BLOCK)
    values = empty(*pages, width, dtype=torch.int8 if int8 else dtype)
    cache = LayerKVCache(values, empty(*pages, dtype=torch.float16) if int8 else None)
    meta = AttentionMetadata(
        query_start_loc=empty(ROWS + 1, dtype=torch.int32),
        seq_lens=empty(ROWS, dtype=torch.int32),
        block_tables=empty(ROWS, 64, dtype=torch.int32),
        slot_mapping=empty(TOKENS, dtype=torch.int64),
        max_query_len=100,
        max_seq_len=1000,
        split_workspace=new_split_workspace(ROWS, heads, kv_heads, width, META),
    )
    out = Act(empty(TOKENS, heads * width, dtype=dtype))
    how: dict[str, Any] = {"scale": 1.0}
    if special:
        how |= {"sliding_window": 128, "softcap": 50.0, "sinks": empty(heads, dtype=torch.float32)}
    paged_attention(empty(TOKENS, heads, width, dtype=dtype), cache, meta, out, **how)


def launches() -> list[Launch]:
    """Of bf16 and fp16, each with pages of its own kind and int8 ones; windows, caps and sinks of bf16."""
    with collecting() as collected:
        for (heads, kv_heads), width, int8 in itertools.product(HEADS, WIDTHS, (False, True)):
            attend(heads, kv_heads, width, torch.bfloat16, int8=int8)
            if width in (WIDTHS[0], WIDTHS[-1]):
                attend(heads, kv_heads, width, torch.float16, int8=int8)
        for int8 in (False, True):
            attend(64, 8, 64, torch.bfloat16, int8=int8, special=True)
            attend(4, 1, 256, torch.bfloat16, int8=int8, special=True)
            attend(4, 1, 256, torch.bfloat16, int8=int8)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
