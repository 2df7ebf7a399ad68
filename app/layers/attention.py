"""Causal attention over paged keys and values, grouped-query heads."""

from __future__ import annotations

from torch import Tensor

from app.kernels.paged_attention import paged_attention
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import Act, AttentionMetadata, LayerKVCache
from app.layers.norm import RMSNorm


class Attention:
    """Rotation, write of keys and values, and attention: all between the qkv projection and the output projection.

    Args:
        rope_PE: table of :func:`app.layers.rotary.rope_table`, shared by layers of the same angles; None rotates
            nothing.
        scale: factor on the dot products of queries and keys.
        sliding_window: positions a query sees, itself included; None for all.
        softcap: bound of the scores, see :func:`app.kernels.paged_attention.paged_attention`; None for none.
        sinks_H: [H] fp32, a logit of each head that takes part in the softmax; None for none.
        q_norm: normalises each query head before the rotation, or all of them as one vector; likewise ``k_norm`` the
            key heads.
        q_scale_P: factors of :func:`app.layers.rotary.query_scales` on the queries; None for none.
        pair_distance: of the elements that are rotated together; None: half a table's row.
        value_norm: normalises each value head, without a weight.
        writes: keys and values; otherwise there are queries alone, which attend over what another layer wrote.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        rope_PE: Tensor | None,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks_H: Tensor | None,
        q_norm: RMSNorm | None,
        k_norm: RMSNorm | None,
        q_scale_P: Tensor | None = None,
        pair_distance: int | None = None,
        value_norm: bool = False,
        writes: bool = True,
    ) -> None:
        self._num_heads = num_heads
        self._head_dim = head_dim
        self._rope_PE = rope_PE
        self._scale = scale
        self._sliding_window = sliding_window
        self._softcap = softcap
        self._sinks_H = sinks_H
        self._q_norm_E = None if q_norm is None else q_norm.weight
        self._k_norm_E = None if k_norm is None else k_norm.weight
        self._q_scale_P = q_scale_P
        self._norm_eps = 0.0 if q_norm is None else q_norm.eps
        self._pair_distance, self._value_norm, self._writes = pair_distance, value_norm, writes

    def __call__(
        self,
        qkv: Tensor,
        positions_T: Tensor,
        kv: LayerKVCache,
        meta: AttentionMetadata,
        q_scratch: Tensor,
        out: Act,
    ) -> None:
        """``qkv`` [T, (H + 2G) * E], or without what is not projected; ``q_scratch`` and ``out`` [T, H * E]. Keys and
        values are written to ``kv``."""
        q_THE = q_scratch.view(-1, self._num_heads, self._head_dim)
        qk_norm_rope_kv_write(
            qkv,
            positions_T,
            self._rope_PE,
            kv if self._writes else None,
            meta.slot_mapping,
            q_THE,
            q_norm=self._q_norm_E,
            k_norm=self._k_norm_E,
            eps=self._norm_eps,
            q_scale_P=self._q_scale_P,
            pair_distance=self._pair_distance,
            value_norm=self._value_norm,
        )
        paged_attention(
            q_THE,
            kv,
            meta,
            out,
            scale=self._scale,
            sliding_window=self._sliding_window,
            softcap=self._softcap,
            sinks=self._sinks_H,
            scratch=q_scratch,
        )
