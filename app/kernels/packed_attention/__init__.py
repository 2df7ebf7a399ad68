"""Bidirectional grouped-query attention over packed sequences, without pages."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import fall_back, native, runs_triton
from app.kernels.packed_attention.cpu import packed_attention_cpu, takes_heads
from app.kernels.packed_attention.reference import packed_attention_reference
from app.kernels.types import Act, PackedSequences

__all__ = ["packed_attention"]

_OP = "packed_attention"


def packed_attention(
    qkv: Tensor,
    sequences: PackedSequences,
    out: Act,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None = None,
    scratch: Tensor | None = None,
) -> None:
    """Each token attends to all tokens of its sequence, before and behind it.

    Softmax and sums are fp32; so are native products, those on a GPU are of ``qkv``'s dtype. A token's result depends
    on its own sequence alone, natively and on a GPU bit for bit.

    Args:
        qkv: [T, (H + 2G) * E] floating: queries, keys and values of each token; query head h reads KV head
            h // (H / G).
        sequences: where each begins and ends.
        out: [T, H * E].
        heads: H.
        kv_heads: G.
        scale: factor of the dot products, above 0.
        window: tokens seen to either side; None sees all.
        scratch: [T, H * E] floating, overwritten; needed where ``out`` is int8, natively and on a GPU.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, width = qkv.shape
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{_OP}: {heads} query heads do not divide into {kv_heads} KV heads")
    if width % (heads + 2 * kv_heads):
        raise ValueError(f"{_OP}: qkv has {width} columns, which are no {heads} + 2 * {kv_heads} heads")
    head_dim = width // (heads + 2 * kv_heads)
    check_tensor(_OP, "qkv", qkv, (tokens, width), *FLOATING)
    check_tensor(_OP, "sequences.cu_seqlens", sequences.cu_seqlens, (sequences.count + 1,), torch.int32)
    check_act(_OP, "out", out, (tokens, heads * head_dim))
    if not scale > 0:
        raise ValueError(f"{_OP}: scale is {scale}, expected a number above 0")
    if window is not None and window < 0:
        raise ValueError(f"{_OP}: window is {window}, expected at least 0")
    if runs_triton(qkv):
        check_token_scale(_OP, out)
        # Only a GPU needs Triton.
        from app.kernels.packed_attention.triton import packed_attention_triton

        packed_attention_triton(qkv, sequences, out, heads, kv_heads, scale, window, scratch)
    elif not takes_heads(head_dim, heads // kv_heads):
        fall_back(_OP, f"heads of {head_dim}, {heads // kv_heads} to a KV head, are not native")
        packed_attention_reference(qkv, sequences, out, heads, kv_heads, scale, window)
    elif scaled_by_groups(out) and native(_OP, qkv, out.values):
        packed_attention_cpu(qkv, sequences, out, heads, kv_heads, scale, window, scratch)
    else:
        packed_attention_reference(qkv, sequences, out, heads, kv_heads, scale, window)
