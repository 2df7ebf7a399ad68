"""Query/key norm, rotary embedding and the write of keys and values into their pages, in one pass over qkv."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_kv_cache, check_tensor
from app.kernels.dispatch import fall_back, native, runs_triton
from app.kernels.qk_norm_rope_kv_write.cpu import qk_norm_rope_kv_write_cpu
from app.kernels.qk_norm_rope_kv_write.preparation import Preparation, norms_whole
from app.kernels.qk_norm_rope_kv_write.reference import qk_norm_rope_kv_write_reference
from app.kernels.types import LayerKVCache

__all__ = ["qk_norm_rope_kv_write"]

_OP = "qk_norm_rope_kv_write"
_NATIVE_MULTIPLE = 16
"""Elements of which a native head is a multiple, as in packed pages."""


def qk_norm_rope_kv_write(
    qkv: Tensor,
    positions_T: Tensor,
    rope_PE: Tensor | None,
    kv: LayerKVCache | None,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    q_scale_P: Tensor | None = None,
    pair_distance: int | None = None,
    value_norm: bool = False,
) -> None:
    """Prepares the queries of a step and stores its keys and values.

    Each query and key head is RMS-normed when a norm is given (all query heads as one vector, and all key heads, where
    its weight is as long), then, when a table is given, its first ``rotary_dim`` elements are rotated in NEOX style
    (element i pairs with i + rotary_dim / 2), all in fp32. Queries, times the factor of their position, go to
    ``q_out``; keys and values, as they are or normed without a weight, go to the pages at ``slot_mapping_T``, int8
    pages quantised per token and head. Without pages there are queries alone.

    Args:
        qkv: [T, (H + 2G) * E] floating: queries, keys, values; or [T, (H + G) * E], and the keys as they stand there
            are the values too.
        positions_T: [T] int64, each below P (not checked here).
        rope_PE: [P, rotary_dim] fp32: cosines, then sines, of the rotary_dim / 2 frequencies; without one
            nothing is rotated.
        kv: pages [num_blocks, 2, G, B, E] of any floating dtype or int8; None where G is 0.
        slot_mapping_T: [T] int64, block * B + offset, all different (not checked here).
        q_out: [T, H, E] floating.
        q_norm: weight of the query norm, [E], or [H * E] of one over all heads; given together with ``k_norm``, or
            alone without pages.
        k_norm: weight of the key norm, [E] or [G * E] likewise.
        eps: of all norms.
        q_scale_P: [P] fp32, factors on the queries; None for none.
        pair_distance: element i pairs with i + this instead, for i below rotary_dim / 2; None: rotary_dim / 2.
        value_norm: values are RMS-normed, head by head.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, heads, head_dim = q_out.shape
    kv_heads = 0
    if kv is not None:
        check_kv_cache(_OP, kv, head_dim)
        kv_heads = kv.values.shape[2]
    key_is_value = kv is not None and qkv.shape[-1] == (heads + kv_heads) * head_dim
    width = (heads + (1 if key_is_value else 2) * kv_heads) * head_dim
    check_tensor(_OP, "qkv", qkv, (tokens, width), *FLOATING)
    check_tensor(_OP, "positions", positions_T, (tokens,), torch.int64)
    if rope_PE is not None:
        rotary_dim = rope_PE.shape[-1]
        check_tensor(_OP, "rope", rope_PE, (rope_PE.shape[0], rotary_dim), torch.float32)
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise ValueError(f"{_OP}: rope has {rotary_dim} columns, expected an even number up to {head_dim}")
        half = rotary_dim // 2
        if pair_distance is not None and not half <= pair_distance <= head_dim - half:
            raise ValueError(f"{_OP}: {half} pairs of elements {pair_distance} apart are not in {head_dim}")
    check_tensor(_OP, "slot_mapping", slot_mapping_T, (tokens,), torch.int64)
    check_tensor(_OP, "q_out", q_out, (tokens, heads, head_dim), *FLOATING)
    if (q_norm is None) != (k_norm is None) and (kv is not None or q_norm is None):
        raise ValueError(f"{_OP}: q_norm and k_norm come together")
    whole = norms_whole(q_norm, head_dim)
    if whole and (kv is None or key_is_value or value_norm):
        raise ValueError(f"{_OP}: a norm over all heads goes with keys and with values of their own, as they are")
    if q_norm is not None:
        check_tensor(_OP, "q_norm", q_norm, (heads * head_dim if whole else head_dim,), *FLOATING)
    if k_norm is not None:
        check_tensor(_OP, "k_norm", k_norm, (kv_heads * head_dim if whole else head_dim,), *FLOATING)
    if q_scale_P is not None:
        check_tensor(_OP, "q_scale", q_scale_P, (q_scale_P.numel(),), torch.float32)
    how = Preparation(rope_PE, q_norm, k_norm, eps, q_scale_P, pair_distance, value_norm, key_is_value)
    if kv is not None and kv.packed:
        qk_norm_rope_kv_write_cpu(qkv, positions_T, kv, slot_mapping_T, q_out, how)
    elif runs_triton(qkv):
        from app.kernels.qk_norm_rope_kv_write.triton import qk_norm_rope_kv_write_triton  # only a GPU needs Triton

        qk_norm_rope_kv_write_triton(qkv, positions_T, kv, slot_mapping_T, q_out, how)
    elif kv is None and head_dim % _NATIVE_MULTIPLE == 0 and native(_OP, qkv, q_norm):
        qk_norm_rope_kv_write_cpu(qkv, positions_T, kv, slot_mapping_T, q_out, how)
    else:
        why = "the pages are not packed" if kv is not None else f"heads of {head_dim} elements without pages"
        fall_back(_OP, why)
        qk_norm_rope_kv_write_reference(qkv, positions_T, kv, slot_mapping_T, q_out, how)
