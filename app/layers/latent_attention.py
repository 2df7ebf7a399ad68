"""Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1): of every token a latent is kept that
all heads make their keys and values of.

Nothing is made of a latent that was kept. With each head's matrices, keys ``k = W_UK c`` and values ``v = W_UV c``,

    q · k = (W_UK^T q) · c        sum p v = W_UV sum p c

so that a query goes to the latents' space and attends there, and its result comes back. The part of a key that is
rotated is one for all heads and kept beside the latent, as a product with positions in it can be moved nowhere.

T tokens of a step, D model width, H query heads of this rank, C elements of a latent and R rotated ones, N and V
elements of a head's query without the rotated ones and of its value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.kernels.collective import ONE_RANK
from app.kernels.head_linear import head_linear
from app.kernels.latent_attention import latent_attention
from app.kernels.latent_write import latent_write
from app.kernels.quantize import quantize
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerLatents, StepArena
from app.layers.config import LatentConfig
from app.layers.linear import Linear, Split, rank_share
from app.layers.norm import RMSNorm
from app.quant.destination import Adapted, Destination, Interleaved
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True)
class LatentBuffers:
    """A step's buffers of :class:`LatentAttention`."""

    x: Act
    """[T, D]"""
    q_low: tuple[Tensor, Act] | None
    """[T, rank of queries] between the two products that make queries, and normed; None where one makes them."""
    q: Tensor
    """[T, H, N + R]"""
    latent: Tensor
    """[T, C + R]"""
    absorbed: Tensor
    """[T, H, C + R]: queries in the latents' space."""
    attended: Tensor
    """[T, H, C]"""
    values: Tensor
    """[T, H, V]"""
    out: Act
    """[T, H * V], in the format that the output projection wants; :attr:`values` where that is floating."""


@dataclass(frozen=True, slots=True)
class LatentLayout:
    """Layout of :class:`LatentAttention`."""

    width: int
    x_format: ActFormat
    q_rank: int | None
    q_format: ActFormat
    heads: int
    q_width: int
    rank: int
    latent_width: int
    v_dim: int
    out_format: ActFormat
    dtype: torch.dtype

    def take(self, arena: StepArena) -> LatentBuffers:
        """The buffers of a step."""
        x = arena.take_act(self.width, self.dtype, self.x_format)
        q_low = None
        if self.q_rank is not None:
            normed = arena.take_act(self.q_rank, self.dtype, self.q_format)
            q_low = arena.take(self.q_rank, self.dtype), normed
        values = self._heads(arena, self.v_dim)
        out = Act(values.flatten(1))
        if self.out_format is not ActFormat.FLOAT:
            out = arena.take_act(self.heads * self.v_dim, self.dtype, self.out_format)
        return LatentBuffers(
            x=x,
            q_low=q_low,
            q=self._heads(arena, self.q_width),
            latent=arena.take(self.latent_width, self.dtype),
            absorbed=self._heads(arena, self.latent_width),
            attended=self._heads(arena, self.rank),
            values=values,
            out=out,
        )

    def _heads(self, arena: StepArena, width: int) -> Tensor:
        flat = arena.take(self.heads * width, self.dtype)
        return flat.view(len(flat), self.heads, width)


class HeadsTransposed(Adapted):
    """The [N, K] of each of H heads, rows of one matrix [H * N, K], whose model has [H, K, N]."""

    def __init__(self, weight_HKN: Tensor) -> None:
        heads, k, n = weight_HKN.shape
        super().__init__(weight_HKN, (heads * n, k))
        self._heads = heads

    def adapt(self, source: Tensor) -> Tensor:
        """Each head's transpose."""
        rows, width = source.shape
        return source.reshape(self._heads, rows // self._heads, width).transpose(1, 2)


class LatentAttention:
    """All between a block's norm and its residual stream.

    The ranks of a tensor-parallel model share out the heads; each makes and keeps every token's latent. The two
    matrices of each head stay floating in every format of weights.

    Args:
        width: D.
        rope_PR: table of :mod:`app.layers.rotary` of ``config.rope``.
    """

    def __init__(self, config: LatentConfig, width: int, *, rope_PR: Tensor, placement: Placement) -> None:
        self._config, self._rope_PR, self._ranks = config, rope_PR, placement.ranks
        everywhere = replace(placement, ranks=ONE_RANK)
        q_width, latent_width = config.nope_dim + config.rope_dim, config.kv_rank + config.rope_dim
        q_size = config.num_heads * q_width
        self.q_a_proj: Linear | None = None
        self.q_norm: RMSNorm | None = None
        if config.q_rank is None:
            self.q_proj = Linear({"q_proj": q_size}, width, split=Split.OUTPUTS, bias=False, placement=placement)
        else:
            parts = {"q_a_proj": config.q_rank}
            self.q_a_proj = Linear(parts, width, split=Split.OUTPUTS, bias=config.bias, placement=everywhere)
            self.q_norm = RMSNorm(config.q_rank, config.norm_eps, placement=placement)
            self.q_proj = Linear(
                {"q_b_proj": q_size}, config.q_rank, split=Split.OUTPUTS, bias=False, placement=placement
            )
        parts = {"kv_a_proj_with_mqa": latent_width}
        self.kv_proj = Linear(parts, width, split=Split.OUTPUTS, bias=config.bias, placement=everywhere)
        self.kv_norm = RMSNorm(config.kv_rank, config.norm_eps, placement=placement)
        heads = config.num_heads // placement.ranks.size
        dtype, device = placement.table_dtype, placement.device
        self.key_HNC = torch.empty(heads, config.nope_dim, config.kv_rank, dtype=dtype, device=device)
        self.value_HCV = torch.empty(heads, config.kv_rank, config.v_dim, dtype=dtype, device=device)
        v_size = config.num_heads * config.v_dim
        self.o_proj = Linear(
            {"o_proj": width},
            v_size,
            split=Split.INPUTS,
            bias=config.bias,
            placement=placement,
            scale=config.output_scale,
        )
        self.layout = LatentLayout(
            width=width,
            x_format=self.kv_proj.act_format,
            q_rank=config.q_rank,
            q_format=self.q_proj.act_format,
            heads=heads,
            q_width=q_width,
            rank=config.kv_rank,
            latent_width=latent_width,
            v_dim=config.v_dim,
            out_format=self.o_proj.act_format,
            dtype=placement.dtype,
        )

    def __call__(
        self, buffers: LatentBuffers, out: Act, positions_T: Tensor, cache: LayerLatents, meta: AttentionMetadata
    ) -> None:
        """``out`` [T, D] of ``buffers.x``; latents are written to ``cache``."""
        config, rank, nope = self._config, self._config.kv_rank, self._config.nope_dim
        x = buffers.x
        if self.q_a_proj is not None and self.q_norm is not None and buffers.q_low is not None:
            low, normed = buffers.q_low
            self.q_a_proj(x, Act(low))
            self.q_norm(low, normed)
            x = normed
        self.q_proj(x, Act(buffers.q.flatten(1)))
        self.kv_proj(buffers.x, Act(buffers.latent))
        latent_write(
            buffers.latent,
            self.kv_norm.weight,
            self.kv_norm.eps,
            buffers.q[..., nope:],
            positions_T,
            self._rope_PR,
            cache,
            meta.slot_mapping,
            buffers.absorbed[..., rank:],
            interleaved=config.interleaved,
        )
        head_linear(buffers.q[..., :nope], self.key_HNC, buffers.absorbed[..., :rank])
        latent_attention(buffers.absorbed, cache, meta, buffers.attended, scale=config.scale)
        head_linear(buffers.attended, self.value_HCV, buffers.values)
        if buffers.out.scale is not None:
            quantize(buffers.values.flatten(1), buffers.out)
        self.o_proj(buffers.out, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Checkpoint names of the layer's weights and where each goes."""
        named: dict[str, Destination] = {}
        if self.q_a_proj is not None and self.q_norm is not None:
            named |= self.q_a_proj.destinations(prefix) | self.q_norm.destinations(f"{prefix}.q_a_layernorm")
        named |= self.q_proj.destinations(prefix) | self.kv_proj.destinations(prefix)
        named |= self.kv_norm.destinations(f"{prefix}.kv_a_layernorm")
        matrices = Interleaved([self.key_HNC.flatten(0, 1), HeadsTransposed(self.value_HCV)], len(self.key_HNC))
        named[f"{prefix}.kv_b_proj.weight"] = rank_share(matrices, 0, self._ranks)
        return named | self.o_proj.destinations(prefix)
