"""Causal attention over paged keys and values, grouped-query heads."""

from __future__ import annotations

from torch import Tensor

from app.kernels.paged_attention import paged_attention
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import Act, AttentionMetadata, LayerKVCache
from app.layers.norm import RMSNorm


class Attention:
    """What lies between the fused qkv projection and the output projection.

    Args:
        rope_PE: table of :func:`app.layers.rotary.rope_table`, shared by layers of the same angles; None rotates
            nothing.
        scale: factor on the dot products of queries and keys.
        sliding_window: positions a query sees, itself included; None for all.
        softcap: bound of the scores, see :func:`app.kernels.paged_attention.paged_attention`; None for none.
        sinks_H: [H] fp32, a logit of each head that takes part in the softmax; None for none.
        q_norm: normalises each query head before the rotation, likewise ``k_norm`` the key heads.
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
        self._norm_eps = 0.0 if q_norm is None else q_norm.eps

    def __call__(
        self,
        qkv: Tensor,
        positions_T: Tensor,
        kv: LayerKVCache,
        meta: AttentionMetadata,
        q_scratch: Tensor,
        out: Act,
    ) -> None:
        """``qkv`` [T, (H + 2G) * E]; ``q_scratch`` and ``out`` [T, H * E]. Keys and values are written to ``kv``."""
        q_THE = q_scratch.view(-1, self._num_heads, self._head_dim)
        qk_norm_rope_kv_write(
            qkv,
            positions_T,
            self._rope_PE,
            kv,
            meta.slot_mapping,
            q_THE,
            q_norm=self._q_norm_E,
            k_norm=self._k_norm_E,
            eps=self._norm_eps,
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
