"""Binding of the native ``packed_attention``."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.quantize.cpu import quantize_call
from app.kernels.types import Act, PackedSequences

_OP = "packed_attention"
_MAX_HEAD_DIM = 256
"""Width of a head, at most."""
_MAX_GROUP = 128
"""Query heads of one KV head, at most; a block of both maxima still fits a thread's scratch."""


def takes_heads(head_dim: int, heads_per_kv: int) -> bool:
    """Whether the native kernel takes heads of that width, so many query heads sharing a KV head."""
    return not head_dim % 16 and 0 < head_dim <= _MAX_HEAD_DIM and heads_per_kv <= _MAX_GROUP


def packed_attention_cpu(
    qkv: Tensor,
    sequences: PackedSequences,
    out: Act,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None,
    scratch: Tensor | None,
) -> None:
    tokens = qkv.shape[0]
    target = out.values
    if out.scale is not None:
        if scratch is None:
            raise ValueError(f"{_OP}: an int8 out needs scratch")
        check_tensor(_OP, "scratch", scratch, tuple(out.values.shape), torch.float32, torch.bfloat16)
        target = scratch
    calls = [
        Call(
            _OP,
            Dim.TOKENS,
            qkv=qkv,
            cu_seqlens=sequences.cu_seqlens,
            out=target,
            dtype=dtype_code(qkv),
            out_dtype=dtype_code(target),
            h=heads,
            g=kv_heads,
            e=qkv.shape[1] // (heads + 2 * kv_heads),
            window=-1 if window is None else min(window, (1 << 30)),
            scale=scale,
        )
    ]
    if out.scale is not None:
        calls.append(quantize_call(target, out, Dim.TOKENS))
    emit(calls, tokens=tokens, rows=sequences.count)
