"""Binding of the native ``rope_kv``."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.paged_attention.cpu import check_packed_pages
from app.kernels.qk_norm_rope_kv_write.preparation import Preparation, norms_whole
from app.kernels.types import LayerKVCache

_OP = "qk_norm_rope_kv_write"
_FLOATS = (torch.float32, torch.bfloat16)


def qk_norm_rope_kv_write_cpu(
    qkv: Tensor,
    positions_T: Tensor,
    kv: LayerKVCache | None,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    how: Preparation,
) -> None:
    q_norm, k_norm = how.q_norm, how.k_norm
    tokens, heads, head_dim = q_out.shape
    if kv is not None:
        check_packed_pages(_OP, kv)
    check_tensor(_OP, "qkv", qkv, tuple(qkv.shape), *_FLOATS)
    check_tensor(_OP, "q_out", q_out, tuple(q_out.shape), qkv.dtype)
    if q_norm is not None and k_norm is not None:
        check_tensor(_OP, "q_norm", q_norm, tuple(q_norm.shape), *_FLOATS)
        check_tensor(_OP, "k_norm", k_norm, tuple(k_norm.shape), q_norm.dtype)
    call = Call(
        "rope_kv",
        Dim.TOKENS,
        qkv=qkv,
        positions=positions_T,
        rope=how.rope,
        kv=None if kv is None else kv.values,
        kv_scale=None if kv is None else kv.scale,
        slots=slot_mapping_T,
        q_out=q_out,
        q_norm=q_norm,
        k_norm=k_norm,
        q_scale=how.q_scale,
        dtype=dtype_code(qkv),
        norm_dtype=0 if q_norm is None else dtype_code(q_norm),
        kv_dtype=0 if kv is None else dtype_code(kv.values),
        h=heads,
        g=0 if kv is None else kv.values.shape[2],
        e=head_dim,
        rotary_dim=how.rotary_dim,
        block_size=1 if kv is None else kv.block_size,
        eps=how.eps,
        whole_norm=int(norms_whole(q_norm, head_dim)),
        pair_distance=how.distance,
        value_norm=int(how.value_norm),
        key_is_value=int(how.key_is_value),
    )
    emit([call], tokens=tokens)
