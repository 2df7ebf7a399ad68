"""Attention of an encoder: every token sees the whole of its sequence.

T tokens of a batch, D model width, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from app.kernels.packed_attention import packed_attention
from app.kernels.types import Act, PackedSequences
from app.layers.blocks import AttentionBuffers, AttentionLayout
from app.layers.config import AttentionConfig
from app.layers.linear import Linear, Split
from app.quant.destination import Destination
from app.quant.placement import Placement


class PackedSelfAttention:
    """Grouped-query attention over packed sequences, between its projections.

    A window of w positions is centred: a token sees (w - 1) // 2 to either side.

    Args:
        width: D.

    Raises:
        ValueError: the config asks for what no kernel computes yet.
    """

    def __init__(self, config: AttentionConfig, width: int, *, placement: Placement) -> None:
        if config.rope is not None or config.qk_norm:
            raise ValueError("PackedSelfAttention has no rotation and no norms of heads")
        if config.softcap is not None or config.sinks or config.output_gate:
            raise ValueError("PackedSelfAttention has no softcap, no sinks and no output gate")
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv_proj = Linear(
            {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            width,
            split=Split.OUTPUTS,
            bias=config.qkv_bias,
            placement=placement,
        )
        self.o_proj = Linear({"o_proj": width}, q_size, split=Split.INPUTS, bias=config.o_bias, placement=placement)
        self._heads, self._kv_heads, self._scale = config.num_heads, config.num_kv_heads, config.scale
        self._window = None if config.window is None else (config.window - 1) // 2
        self.layout = AttentionLayout(
            width=width,
            x_format=self.qkv_proj.act_format,
            qkv_size=self.qkv_proj.out_features,
            q_size=self.o_proj.in_features,
            attended_format=self.o_proj.act_format,
            output_gate=False,
            dtype=placement.dtype,
        )

    def __call__(self, buffers: AttentionBuffers, out: Act, sequences: PackedSequences) -> None:
        """``out`` [T, D] of ``buffers.x``."""
        self.qkv_proj(buffers.x, Act(buffers.qkv))
        packed_attention(
            buffers.qkv,
            sequences,
            buffers.attended,
            heads=self._heads,
            kv_heads=self._kv_heads,
            scale=self._scale,
            window=self._window,
            scratch=buffers.q,
        )
        self.o_proj(buffers.attended, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` below ``prefix``."""
        return self.qkv_proj.destinations(prefix) | self.o_proj.destinations(prefix)
