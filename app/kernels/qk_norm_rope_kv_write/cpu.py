"""Binding of the native ``rope_kv``."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.paged_attention.cpu import check_packed_pages
from app.kernels.types import LayerKVCache

_OP = "qk_norm_rope_kv_write"
_FLOATS = (torch.float32, torch.bfloat16)


def qk_norm_rope_kv_write_cpu(
    qkv: Tensor,
    positions_T: Tensor,
    rope_PE: Tensor | None,
    kv: LayerKVCache,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    tokens, heads, head_dim = q_out.shape
    check_packed_pages(_OP, kv)
    check_tensor(_OP, "qkv", qkv, tuple(qkv.shape), *_FLOATS)
    check_tensor(_OP, "q_out", q_out, tuple(q_out.shape), qkv.dtype)
    if q_norm is not None and k_norm is not None:
        check_tensor(_OP, "q_norm", q_norm, (head_dim,), *_FLOATS)
        check_tensor(_OP, "k_norm", k_norm, (head_dim,), q_norm.dtype)
    call = Call(
        "rope_kv",
        Dim.TOKENS,
        qkv=qkv,
        positions=positions_T,
        rope=rope_PE,
        kv=kv.values,
        kv_scale=kv.scale,
        slots=slot_mapping_T,
        q_out=q_out,
        q_norm=q_norm,
        k_norm=k_norm,
        dtype=dtype_code(qkv),
        norm_dtype=0 if q_norm is None else dtype_code(q_norm),
        kv_dtype=dtype_code(kv.values),
        h=heads,
        g=kv.values.shape[2],
        e=head_dim,
        rotary_dim=0 if rope_PE is None else rope_PE.shape[1],
        block_size=kv.block_size,
        eps=eps,
    )
    emit([call], tokens=tokens)
