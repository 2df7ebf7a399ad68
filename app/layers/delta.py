"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), the linear attention of Qwen3-Next and Qwen3.5.

T tokens of a step, D model width, C channels of the convolution (queries, keys and values side by side), Hk and Hv key
and value heads, of Dk and Dv elements. The ranks of a tensor-parallel model share out the heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.causal_conv import causal_conv
from app.kernels.gated_delta import gated_delta
from app.kernels.gated_norm import gated_norm
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerState, StepArena
from app.layers.config import DeltaConfig
from app.layers.linear import Linear, Split, rank_share
from app.quant.destination import Destination, Interleaved, View
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True)
class DeltaBuffers:
    """A step's buffers of :class:`GatedDelta`."""

    x: Act
    """[T, D]"""
    projected: Tensor
    """[T, C + Hv * Dv + 2 Hv]: the convolution's inputs, the output's gate, and what becomes beta and decay."""
    qkv: Tensor
    """[T, C]"""
    mixed: Tensor
    """[T, Hv * Dv]"""
    gated: Act
    """[T, Hv * Dv]"""


@dataclass(frozen=True, slots=True)
class DeltaLayout:
    """Layout of :class:`GatedDelta`."""

    width: int
    x_format: ActFormat
    projected_size: int
    channels: int
    inner: int
    gated_format: ActFormat
    dtype: torch.dtype

    def take(self, arena: StepArena) -> DeltaBuffers:
        """The buffers of a step."""
        return DeltaBuffers(
            x=arena.take_act(self.width, self.dtype, self.x_format),
            projected=arena.take(self.projected_size, self.dtype),
            qkv=arena.take(self.channels, self.dtype),
            mixed=arena.take(self.inner, self.dtype),
            gated=arena.take_act(self.inner, self.dtype, self.gated_format),
        )


class GatedDelta:
    """The gated delta rule between its projections: convolution, rule, gated norm.

    One product makes all inputs of a token's kernels. Its outputs are those of the checkpoint's projections, ordered so
    that each kernel's inputs are neighbours.

    Args:
        width: D.
        shape: heads and widths.
        eps: epsilon of the norm ahead of the output projection.
        interleaved: the checkpoint has ``in_proj_qkvz`` and ``in_proj_ba``, whose rows go by key heads (Qwen3-Next);
            otherwise ``in_proj_qkv``, ``in_proj_z``, ``in_proj_b`` and ``in_proj_a`` (Qwen3.5).
    """

    def __init__(self, width: int, shape: DeltaConfig, eps: float, *, interleaved: bool, placement: Placement) -> None:
        self._shape, self._interleaved, self._ranks = shape, interleaved, placement.ranks
        self._eps = eps
        keys, values = shape.num_k_heads * shape.k_dim, shape.num_v_heads * shape.v_dim
        parts = {"q": keys, "k": keys, "v": values, "z": values, "b": shape.num_v_heads, "a": shape.num_v_heads}
        self.in_proj = Linear(parts, width, split=Split.OUTPUTS, bias=False, placement=placement)
        self.out_proj = Linear({"out_proj": width}, values, split=Split.INPUTS, bias=False, placement=placement)
        ranks, device = placement.ranks.size, placement.device
        self._sizes = [keys // ranks, keys // ranks, values // ranks]
        self._channels, self._inner, self._heads = sum(self._sizes), values // ranks, shape.num_v_heads // ranks
        self.conv_weight = torch.empty(shape.conv_width, self._channels, dtype=torch.float32, device=device)
        self.a_log = torch.empty(self._heads, dtype=torch.float32, device=device)
        self.dt_bias = torch.empty(self._heads, dtype=torch.float32, device=device)
        self.norm_weight = torch.empty(shape.v_dim, dtype=torch.float32, device=device)
        self.layout = DeltaLayout(
            width=width,
            x_format=self.in_proj.act_format,
            projected_size=self.in_proj.out_features,
            channels=self._channels,
            inner=self._inner,
            gated_format=self.out_proj.act_format,
            dtype=placement.dtype,
        )

    def __call__(
        self, buffers: DeltaBuffers, out: Act, _positions_T: Tensor, state: LayerState, meta: AttentionMetadata
    ) -> None:
        """``out`` [T, D] of ``buffers.x``; ``meta`` of the state's group. The rows' states are left in ``state``."""
        gate = self._channels + self._inner
        projected = buffers.projected
        self.in_proj(buffers.x, Act(projected))
        causal_conv(projected[:, : self._channels], self.conv_weight, state, meta, buffers.qkv)
        gated_delta(
            buffers.qkv,
            projected[:, gate : gate + self._heads],
            projected[:, gate + self._heads :],
            self.a_log,
            self.dt_bias,
            state,
            meta,
            buffers.mixed,
        )
        gated_norm(buffers.mixed, self.norm_weight, projected[:, self._channels : gate], self._eps, buffers.gated)
        self.out_proj(buffers.gated, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Checkpoint names of the layer's weights and where each goes."""
        part = self.in_proj.weights()
        named: dict[str, Destination]
        if self._interleaved:
            groups = self._shape.num_k_heads
            qkvz = Interleaved([part["q"], part["k"], part["v"], part["z"]], groups)
            named = {"in_proj_qkvz.weight": qkvz, "in_proj_ba.weight": Interleaved([part["b"], part["a"]], groups)}
        else:
            named = {"in_proj_qkv.weight": Interleaved([part["q"], part["k"], part["v"]])}
            named |= {f"in_proj_{name}.weight": part[name] for name in ("z", "b", "a")}
        named["conv1d.weight"] = self._taps()
        named["A_log"] = rank_share(self.a_log, 0, self._ranks)
        named["dt_bias"] = rank_share(self.dt_bias, 0, self._ranks)
        named["norm.weight"] = self.norm_weight
        return {f"{prefix}.{name}": where for name, where in named.items()} | self.out_proj.destinations(prefix)

    def _taps(self) -> Destination:
        """The destination of a checkpoint's ``conv1d.weight`` [C, 1, K]."""
        weight, start, shares = self.conv_weight, 0, list[Destination]()
        for size in self._sizes:
            channels = View(weight, weight[:, start : start + size].t().unsqueeze(1))
            shares.append(rank_share(channels, 0, self._ranks))
            start += size
        return Interleaved(shares)
