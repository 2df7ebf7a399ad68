"""Fields of a Gemma 4's ``config.json`` (torch-free)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from app.models.reading import Count, Epsilon, NumLayers, Positive


class Heads(msgspec.Struct, forbid_unknown_fields=True):
    """What ``per_layer_config`` may say of a layer."""

    head_dim: Positive | None = None
    num_key_value_heads: Positive | None = None


class Fields(msgspec.Struct, kw_only=True):
    """Published configs may leave out what transformers has a default for."""

    vocab_size: Positive = 262_144
    hidden_size: Positive = 2304
    intermediate_size: Positive = 9216
    num_hidden_layers: NumLayers = 30
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive = 4
    head_dim: Positive = 256
    global_head_dim: Positive = 512
    num_global_key_value_heads: Positive | None = None
    per_layer_config: dict[str, Heads] | None = None
    max_position_embeddings: Positive = 131_072
    rms_norm_eps: Epsilon = 1e-6
    hidden_activation: Any = "gelu_pytorch_tanh"
    tie_word_embeddings: bool | None = True
    attention_bias: bool | None = False
    attention_k_eq_v: bool | None = False
    rope_parameters: dict[str, dict[str, Any] | None] | None = None
    sliding_window: Positive = 512
    layer_types: list[str] | None = None
    final_logit_softcapping: Annotated[float, msgspec.Meta(gt=0)] | None = None
    use_bidirectional_attention: Literal["vision"] | None = None
    vocab_size_per_layer_input: Positive = 262_144
    hidden_size_per_layer_input: Count | None = 256
    num_kv_shared_layers: Count | None = 0
    use_double_wide_mlp: bool | None = False
    enable_moe_block: bool | None = False
    num_experts: Positive | None = None
    top_k_experts: Positive | None = None
    moe_intermediate_size: Positive | None = None
