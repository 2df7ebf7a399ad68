"""Llama-shaped decoders: Llama, Mistral, Qwen2, Qwen3 and SmolLM, told apart by flags of the config.

Pre-norm blocks of grouped-query attention with rotary positions and a SiLU-gated MLP. Nothing here computes:
``forward`` names buffers and calls layers, each of which is one kernel or two. The ranks of a tensor-parallel model
share out heads, MLP width and vocabulary: H, G and I below are one rank's.

T tokens of a step, L rows of logits, D model width, H query heads, G key/value heads, E head width, I MLP width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from app.kernels.linear import Activation
from app.kernels.types import Act, AttentionMetadata, LayerKVCache, StepArena
from app.layers.attention import Attention
from app.layers.embedding import Embedding, LMHead
from app.layers.linear import Linear, Split
from app.layers.norm import RMSNorm
from app.layers.rotary import rope_table
from app.models.config import ModelConfig
from app.models.tied_head import EMBEDDING, HEAD
from app.quant.destination import Destination
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True)
class _Activations:
    """The buffers of a step, used by every layer in turn."""

    residual: Tensor
    """[T, D] the residual stream."""
    delta: Tensor
    """[T, D] what a block adds to it."""
    attention_in: Act
    """[T, D]"""
    qkv: Tensor
    """[T, (H + 2G) * E]"""
    q: Tensor
    """[T, H * E]"""
    attention_out: Act
    """[T, H * E]"""
    mlp_in: Act
    """[T, D]"""
    mlp_scratch: Tensor | None
    """What the gate and up projection needs on the way to :attr:`gated`."""
    gated: Act
    """[T, I]"""
    final: Tensor
    """[T, D]"""


class DecoderLayer:
    """One block: attention, then MLP, each after a norm."""

    def __init__(self, config: ModelConfig, index: int, rope_PE: Tensor, placement: Placement) -> None:
        width, eps, head_dim = config.hidden_size, config.rms_norm_eps, config.head_dim
        q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
        self._prefix = f"model.layers.{index}"
        self.input_norm = RMSNorm(width, eps, placement=placement)
        self.qkv_proj = Linear(
            {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            width,
            split=Split.OUTPUTS,
            bias=config.qkv_bias,
            placement=placement,
        )
        self.q_norm = RMSNorm(head_dim, eps, placement=placement) if config.qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps, placement=placement) if config.qk_norm else None
        self.attention = Attention(
            config.num_heads // placement.ranks.size,
            head_dim,
            rope_PE,
            sliding_window=config.layer_windows[index],
            q_norm=self.q_norm,
            k_norm=self.k_norm,
        )
        self.o_proj = Linear(
            {"o_proj": width}, q_size, split=Split.INPUTS, bias=config.o_proj_bias, placement=placement
        )
        self.mlp_norm = RMSNorm(width, eps, placement=placement)
        inner, bias = config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(
            {"gate_proj": inner, "up_proj": inner},
            width,
            split=Split.OUTPUTS,
            bias=bias,
            placement=placement,
            activation=Activation.SILU_MUL,
        )
        self.down_proj = Linear({"down_proj": width}, inner, split=Split.INPUTS, bias=bias, placement=placement)

    def forward(
        self, acts: _Activations, positions_T: Tensor, kv: LayerKVCache, meta: AttentionMetadata, *, first: bool
    ) -> None:
        """Leaves the MLP's contribution in ``acts.delta``; the next norm adds it to the residual stream."""
        if first:
            self.input_norm(acts.residual, acts.attention_in)
        else:
            self.input_norm(acts.delta, acts.attention_in, residual_TD=acts.residual)
        self.qkv_proj(acts.attention_in, Act(acts.qkv))
        self.attention(acts.qkv, positions_T, kv, meta, acts.q, acts.attention_out)
        self.o_proj(acts.attention_out, Act(acts.delta))
        self.mlp_norm(acts.delta, acts.mlp_in, residual_TD=acts.residual)
        self.gate_up_proj(acts.mlp_in, acts.gated, scratch=acts.mlp_scratch)
        self.down_proj(acts.gated, Act(acts.delta))

    def destinations(self) -> dict[str, Destination]:
        """Checkpoint names of the layer's weights and where each goes."""
        prefix = self._prefix
        named = self.input_norm.destinations(f"{prefix}.input_layernorm")
        named |= self.qkv_proj.destinations(f"{prefix}.self_attn")
        if self.q_norm is not None and self.k_norm is not None:
            named |= self.q_norm.destinations(f"{prefix}.self_attn.q_norm")
            named |= self.k_norm.destinations(f"{prefix}.self_attn.k_norm")
        named |= self.o_proj.destinations(f"{prefix}.self_attn")
        named |= self.mlp_norm.destinations(f"{prefix}.post_attention_layernorm")
        named |= self.gate_up_proj.destinations(f"{prefix}.mlp")
        named |= self.down_proj.destinations(f"{prefix}.mlp")
        return named


class LlamaForCausalLM:
    """A decoder with its output head; weights are uninitialised until :meth:`destinations` are filled.

    Args:
        max_positions: positions from 0 that sequences will use; sizes the table of rotary angles.
    """

    def __init__(self, config: ModelConfig, *, max_positions: int, placement: Placement) -> None:
        self._config = config
        self._dtype = placement.dtype
        placement = placement.for_model()
        vocab_size, width = config.vocab_size, config.hidden_size
        self.embedding = Embedding(vocab_size, width, placement=placement)
        rope_PE = rope_table(config.head_dim, config.rope_theta, config.rope_scaling, max_positions, placement.device)
        self.layers = [DecoderLayer(config, i, rope_PE, placement) for i in range(config.num_layers)]
        self.final_norm = RMSNorm(width, config.rms_norm_eps, placement=placement)
        tied = self.embedding if config.tie_word_embeddings else None
        self.lm_head = LMHead(vocab_size, width, placement=placement, tied=tied)

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        kv: Sequence[LayerKVCache],
        metas: Sequence[AttentionMetadata],
        arena: StepArena,
    ) -> Tensor:
        """Final hidden states [T, D] of the step's tokens, a buffer of ``arena``; writes their keys and values.

        Args:
            token_ids_T: [T] int64.
            positions_T: [T] int64.
            kv: one cache a layer.
            metas: one a layer; layers of a KV cache group share theirs.
            arena: begun with T rows.
        """
        acts = self._take_activations(arena)
        self.embedding(token_ids_T, acts.residual)
        for index, (layer, layer_kv, meta) in enumerate(zip(self.layers, kv, metas, strict=True)):
            layer.forward(acts, positions_T, layer_kv, meta, first=index == 0)
        self.final_norm(acts.delta, Act(acts.final), residual_TD=acts.residual)
        return acts.final

    def reserve(self, arena: StepArena) -> None:
        """Takes every buffer that :meth:`forward` and :meth:`logits` take, so that ``arena`` knows its size."""
        self._take_activations(arena)
        self.lm_head.reserve(arena, self._config.hidden_size, self._dtype)

    def logits(self, hidden_TD: Tensor, indices_L: Tensor, out_LV: Tensor, arena: StepArena) -> None:
        """Logits [L, V] fp32 of the rows ``indices`` [L] int64 of what :meth:`forward` gave; L is at most T."""
        self.lm_head(hidden_TD, indices_L, out_LV, arena)

    def destinations(self) -> dict[str, Destination]:
        """Every weight of the checkpoint by name, and where it goes."""
        tied = self._config.tie_word_embeddings
        named: dict[str, Destination] = {
            EMBEDDING: self.lm_head.destination(self.embedding) if tied else self.embedding.destination(),
        }
        for layer in self.layers:
            named |= layer.destinations()
        named |= self.final_norm.destinations("model.norm")
        if not tied:
            named[HEAD] = self.lm_head.destination()
        return named

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold ``name`` although :meth:`destinations` does not."""
        tied_copy = name == HEAD and self._config.tie_word_embeddings
        return tied_copy or name.endswith(".rotary_emb.inv_freq")

    def twins(self) -> dict[str, str]:
        """For names of :meth:`destinations` the tied tensor that a checkpoint may hold instead."""
        return {EMBEDDING: HEAD} if self._config.tie_word_embeddings else {}

    def _take_activations(self, arena: StepArena) -> _Activations:
        width, dtype, layer = self._config.hidden_size, self._dtype, self.layers[0]
        q_size, inner = layer.o_proj.in_features, layer.down_proj.in_features
        gated_format = layer.down_proj.act_format
        scratch_width = layer.gate_up_proj.scratch_width(gated_format)
        return _Activations(
            residual=arena.take(width, dtype),
            delta=arena.take(width, dtype),
            attention_in=arena.take_act(width, dtype, layer.qkv_proj.act_format),
            qkv=arena.take(layer.qkv_proj.out_features, dtype),
            q=arena.take(q_size, dtype),
            attention_out=arena.take_act(q_size, dtype, layer.o_proj.act_format),
            mlp_in=arena.take_act(width, dtype, layer.gate_up_proj.act_format),
            mlp_scratch=arena.take(scratch_width, dtype) if scratch_width else None,
            gated=arena.take_act(inner, dtype, gated_format),
            final=arena.take(width, dtype),
        )
