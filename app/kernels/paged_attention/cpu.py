"""Binding of the native ``attention``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.paged_attention.scores import Scores
from app.kernels.quantize.cpu import quantize_call
from app.kernels.types import Act, AttentionMetadata, LayerKVCache

_OP = "paged_attention"
_FLOATS = (torch.float32, torch.bfloat16)
_PAGE_DTYPES = (torch.bfloat16, torch.int8)
_MAX_HEAD_DIM = 512
_MAX_GROUP = 128
"""Query heads of one KV head."""
_MAX_GROUP_WIDTH = 1 << 15
"""Elements of all query heads of one KV head: a tile of them, and a split's keys and values, fit a thread's scratch."""


def can_pack(shape: Sequence[int], dtype: torch.dtype, heads_per_kv: int = 1) -> bool:
    """Whether native kernels take pages [num_blocks, 2, G, B, E] of that shape and dtype.

    Args:
        heads_per_kv: query heads that share a key/value head.
    """
    block_size, head_dim = shape[3:]
    fits = not block_size % 16 and not head_dim % 16 and head_dim <= _MAX_HEAD_DIM
    return dtype in _PAGE_DTYPES and fits and heads_per_kv <= _most_heads(head_dim)


def _most_heads(head_dim: int) -> int:
    """Query heads that one KV head can have."""
    return min(_MAX_GROUP, _MAX_GROUP_WIDTH // head_dim)


def check_packed_pages(op: str, kv: LayerKVCache) -> None:
    """Checks that packed pages are of a dtype and of sizes that the native kernels take.

    Raises:
        ValueError: they are not.
    """
    if kv.values.dtype not in _PAGE_DTYPES:
        raise ValueError(f"{op}: packed kv is {kv.values.dtype}, expected torch.bfloat16 or torch.int8")
    if not can_pack(kv.values.shape, kv.values.dtype):
        block_size, head_dim = kv.values.shape[3:]
        raise ValueError(
            f"{op}: packed kv has blocks of {block_size} and heads of {head_dim}, "
            f"expected multiples of 16, heads up to {_MAX_HEAD_DIM}"
        )


def paged_attention_cpu(
    q: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    out: Act,
    scores: Scores,
    scratch: Tensor | None,
) -> None:
    tokens, heads, head_dim = q.shape
    kv_heads = kv.values.shape[2]
    check_packed_pages(_OP, kv)
    check_tensor(_OP, "q", q, tuple(q.shape), *_FLOATS)
    if heads // kv_heads > (most := _most_heads(head_dim)):
        raise ValueError(f"{_OP}: {heads // kv_heads} query heads of one KV head, expected at most {most}")
    target = out.values
    if out.scale is not None:
        if scratch is None:
            raise ValueError(f"{_OP}: an int8 out over packed pages needs scratch")
        check_tensor(_OP, "scratch", scratch, tuple(out.values.shape), *_FLOATS)
        target = scratch
    else:
        check_tensor(_OP, "out", target, tuple(target.shape), *_FLOATS)
    calls = [
        Call(
            "attention",
            Dim.TOKENS,
            q=q,
            kv=kv.values,
            kv_scale=kv.scale,
            query_start_loc=meta.query_start_loc,
            seq_lens=meta.seq_lens,
            block_tables=meta.block_tables,
            sinks=scores.sinks,
            out=target,
            dtype=dtype_code(q),
            out_dtype=dtype_code(target),
            kv_dtype=dtype_code(kv.values),
            h=heads,
            g=kv_heads,
            e=head_dim,
            block_size=kv.block_size,
            block_table_stride=meta.block_tables.shape[1],
            sliding_window=scores.sliding_window or 0,
            scale=scores.scale,
            softcap=scores.softcap or 0.0,
        )
    ]
    if out.scale is not None:
        calls.append(quantize_call(target, out, Dim.TOKENS))
    emit(
        calls,
        tokens=tokens,
        rows=meta.seq_lens.numel(),
        max_seq_len=meta.max_seq_len,
        max_query_len=meta.max_query_len,
    )
