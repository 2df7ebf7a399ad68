"""Query/key norm, rotary embedding and the write of keys and values into their pages, in one pass over qkv."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_kv_cache, check_tensor
from app.kernels.dispatch import fall_back, runs_triton
from app.kernels.qk_norm_rope_kv_write.cpu import qk_norm_rope_kv_write_cpu
from app.kernels.qk_norm_rope_kv_write.reference import qk_norm_rope_kv_write_reference
from app.kernels.types import LayerKVCache

__all__ = ["qk_norm_rope_kv_write"]

_OP = "qk_norm_rope_kv_write"


def qk_norm_rope_kv_write(
    qkv: Tensor,
    positions_T: Tensor,
    rope_PE: Tensor | None,
    kv: LayerKVCache,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """Prepares the queries of a step and stores its keys and values.

    Each query and key head is RMS-normed when a norm is given, then, when a table is given, its first ``rotary_dim``
    elements are rotated in NEOX style (element i pairs with i + rotary_dim / 2), all in fp32. Queries go to ``q_out``;
    keys and plain values go to the pages at ``slot_mapping_T``, int8 pages quantised per token and head.

    Args:
        qkv: [T, (H + 2G) * E] floating: queries, keys, values.
        positions_T: [T] int64, each below P (not checked here).
        rope_PE: [P, rotary_dim] fp32: cosines, then sines, of the rotary_dim / 2 frequencies; without one
            nothing is rotated.
        kv: pages [num_blocks, 2, G, B, E] of any floating dtype or int8.
        slot_mapping_T: [T] int64, block * B + offset, all different (not checked here).
        q_out: [T, H, E] floating.
        q_norm: [E] weight of the query norm; given together with ``k_norm``.
        k_norm: [E] weight of the key norm.
        eps: of both norms.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, heads, head_dim = q_out.shape
    check_kv_cache(_OP, kv, head_dim)
    kv_heads = kv.values.shape[2]
    check_tensor(_OP, "qkv", qkv, (tokens, (heads + 2 * kv_heads) * head_dim), *FLOATING)
    check_tensor(_OP, "positions", positions_T, (tokens,), torch.int64)
    if rope_PE is not None:
        rotary_dim = rope_PE.shape[-1]
        check_tensor(_OP, "rope", rope_PE, (rope_PE.shape[0], rotary_dim), torch.float32)
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise ValueError(f"{_OP}: rope has {rotary_dim} columns, expected an even number up to {head_dim}")
    check_tensor(_OP, "slot_mapping", slot_mapping_T, (tokens,), torch.int64)
    check_tensor(_OP, "q_out", q_out, (tokens, heads, head_dim), *FLOATING)
    if (q_norm is None) != (k_norm is None):
        raise ValueError(f"{_OP}: q_norm and k_norm come together")
    if q_norm is not None and k_norm is not None:
        check_tensor(_OP, "q_norm", q_norm, (head_dim,), *FLOATING)
        check_tensor(_OP, "k_norm", k_norm, (head_dim,), *FLOATING)
    if kv.packed:
        qk_norm_rope_kv_write_cpu(qkv, positions_T, rope_PE, kv, slot_mapping_T, q_out, q_norm, k_norm, eps)
    elif runs_triton(qkv):
        from app.kernels.qk_norm_rope_kv_write.triton import qk_norm_rope_kv_write_triton  # only a GPU needs Triton

        qk_norm_rope_kv_write_triton(qkv, positions_T, rope_PE, kv, slot_mapping_T, q_out, q_norm, k_norm, eps)
    else:
        fall_back(_OP, "the pages are not packed")
        qk_norm_rope_kv_write_reference(qkv, positions_T, rope_PE, kv, slot_mapping_T, q_out, q_norm, k_norm, eps)
