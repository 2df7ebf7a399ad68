"""Tiny random models of each supported shape, and their paged execution, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    Ernie4_5Config,
    Exaone4Config,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    GraniteMoeSharedConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    LlamaConfig,
    MiniCPM3Config,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
    Starcoder2Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from app.checkpoints.loader import load_weights
from app.contract.step import ScheduledRow
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.types import LayerKVCache, LayerLatents, LayerState, StepArena
from app.layers.config import AttentionConfig, LatentConfig, MambaConfig, MixerConfig, ShortConvConfig
from app.models.architecture import Architecture
from app.models.architectures import find, parse_config
from app.models.base import Decoder
from app.models.config import ModelConfig
from app.quant.placement import Placement
from app.runner.input_batch import InputBatch
from tests.fakes import kv_group
from tests.runner.steps import row_of, step_of

CPU = torch.device("cpu")
BLOCK_SIZE = 16
CONTEXT = 256
_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    # Wide enough for attention to be far from uniform.
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LAYER_TYPES = ["full_attention", "sliding_attention", "full_attention"]
_SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
_HEAD_10 = {"hidden_size": 60}
_HEAD_16 = {"head_dim": 16}
DELTA: dict[str, Any] = {
    "hidden_size": 64,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "full_attention_interval": 2,
    # At twice as much fp32 itself, transformers' chunks of tokens too, is 1e-4 from the numbers in float64.
    "initializer_range": 0.1,
}
_LFM2 = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
}
_LFM2_DENSE = {**_LFM2, "block_multiple_of": 24, "full_attn_idxs": [1]}
_LFM2_MOE = {
    **_LFM2,
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "num_dense_layers": 1,
    "num_experts": 9,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 36,
    "tie_word_embeddings": False,
}
_NEXT = {**DELTA, "num_experts": 0}
_NORMS = ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight", "mamba.D")
_FACTORS = ("layernorm_1.weight", "layernorm_2.weight", "router.scale", "per_expert_scale")
_MOE = {"num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": 36}
_MOE_MIXED = {
    "num_hidden_layers": 5,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "use_sliding_window": True,
    "sliding_window": 24,
    "tie_word_embeddings": True,
}
"""Experts in the second layer alone, their weights not normalised."""
_GEMMA3 = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "sliding_window_pattern": 2,
    "tie_word_embeddings": True,
}
_GEMMA3_256 = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 128,
    "sliding_window_pattern": 3,
    "attention_bias": True,
    "rope_parameters": {"full_attention": _LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
}
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 24,
    "vocab_size_per_layer_input": 130,
    "hidden_size_per_layer_input": 12,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    # Low enough to bend most logits.
    "final_logit_softcapping": 4.0,
    "tie_word_embeddings": True,
}
"""As E2B and E4B: inputs of layers, of which the last share pages."""
_GEMMA4_DENSE = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
"""As 31B: keys of full attention are values too. The last layer becomes one of these."""
_GEMMA4_EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 9,
    "top_k_experts": 3,
    "moe_intermediate_size": 36,
}
_SMOLLM3 = {"num_hidden_layers": 4, "num_attention_heads": 4, "tie_word_embeddings": True}
_SMOLLM3_SLIDING = {
    "no_rope_layers": [0, 1, 0, 1],
    "use_sliding_window": True,
    "sliding_window": 24,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
}
_GRANITE = {
    "hidden_size": 96,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_state": 24,
    "mamba_chunk_size": 16,
}
_GRANITE4: dict[str, Any] = {
    **MAMBA,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
    "layer_types": ["linear_attention", "full_attention"],
    "shared_intermediate_size": 52,
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.4,
}
_GRANITE4_GROUPS = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_groups": 2,
    "mamba_d_conv": 3,
    "mamba_conv_bias": False,
    "mamba_proj_bias": True,
    "time_step_limit": [0.4, 1.6],
    "num_local_experts": 0,
    "position_embedding_type": "rope",
    "attention_bias": True,
    "tie_word_embeddings": True,
}
_FALCON_H1: dict[str, Any] = {
    **MAMBA,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mamba_d_ssm": 128,
    "mamba_norm_before_gate": False,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.6,
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.9,
    "key_multiplier": 0.4,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.3,
    "ssm_multipliers": [0.35, 0.25, 0.36, 0.5, 0.7],
    "mlp_multipliers": [0.9, 0.6],
}
_FALCON_H1_NORMED = {
    "mamba_d_ssm": 64,
    "mamba_n_groups": 2,
    "mamba_rms_norm": True,
    "mamba_conv_bias": False,
    "mamba_proj_bias": True,
    "projectors_bias": True,
    "attention_in_multiplier": 1.0,
    "ssm_in_multiplier": 1.0,
    "time_step_limit": [0.4, 1.6],
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
}
_BIASES = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
_OLMO3 = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "sliding_window": 24,
    "rope_parameters": {
        "full_attention": {**_YARN, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
    },
}
_EXAONE4 = {"num_attention_heads": 4, "num_hidden_layers": 4, "sliding_window": 24, "sliding_window_pattern": 2}
_EXAONE4_FULL = {
    "num_hidden_layers": 3,
    "sliding_window": None,
    "layer_types": ["full_attention"] * 3,
    "tie_word_embeddings": True,
}
_MINISTRAL3 = {
    **_HEAD_16,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.3,
    },
}
"""Within a test's tokens queries have four factors."""
_GEMMA2 = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    # Low enough to bend most scores and logits.
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 4.0,
    "tie_word_embeddings": True,
}
_GEMMA2_BIASES = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 48,
    "query_pre_attn_scalar": 128,
    "attention_bias": True,
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": _LINEAR,
    "tie_word_embeddings": False,
}
_GPT_OSS = {
    "num_hidden_layers": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 24,
    # Low enough to be met.
    "swiglu_limit": 1.5,
    "rope_parameters": {**_YARN, "rope_theta": 150_000.0, "truncate": False},
}
_GPT_OSS_PLAIN = {
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "attention_bias": False,
    # All of them, so that none is chosen in another's place.
    "num_local_experts": 3,
    "num_experts_per_tok": 3,
    "swiglu_alpha": 1.0,
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "tie_word_embeddings": True,
}
_SHORT_FACTORS, _LONG_FACTORS = [1.0, 1.1, 1.25, 1.5, 2.0, 3.0], [1.0, 1.5, 2.5, 5.0, 9.0, 14.0]
LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": _SHORT_FACTORS,
    "long_factor": _LONG_FACTORS,
}
_PHI3 = {
    "hidden_size": 96,
    "initializer_range": 0.1,
    "rope_parameters": LONG_ROPE,
    "original_max_position_embeddings": 64,
}
_COHERE2 = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "sliding_window": 24,
    "sliding_window_pattern": 2,
    "logit_scale": 0.25,
}
_LATENT: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
_LATENT_LOW = {**_LATENT, "q_lora_rank": 24}
"""Queries by two products."""
_DENSE = {"first_k_dense_replace": 3}
_SPARSE = {"first_k_dense_replace": 1, "num_experts_per_tok": 3, "moe_intermediate_size": 36}
_GROUPED = {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5}
_YARN_MSCALE = {"rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}
Variant = tuple[type[PreTrainedConfig], dict[str, Any]]
"""transformers' config of a family, and its fields beside those of every tiny model."""
VARIANTS: dict[str, Variant] = {
    "deepseek_v2": (DeepseekV2Config, {**_LATENT, **_DENSE, "tie_word_embeddings": True}),
    "deepseek_v2_low": (
        DeepseekV2Config,
        {
            **_LATENT_LOW,
            **_DENSE,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.9},
        },
    ),
    "deepseek_v3": (DeepseekV3Config, {**_LATENT_LOW, **_DENSE, **_YARN_MSCALE}),
    "deepseek_v3_halves": (
        DeepseekV3Config,
        {**_LATENT_LOW, **_DENSE, "rope_interleave": False, "attention_bias": True},
    ),
    "deepseek_v2_experts": (DeepseekV2Config, {**_LATENT, **_SPARSE, "n_routed_experts": 9}),
    "deepseek_v2_groups": (
        DeepseekV2Config,
        {**_LATENT_LOW, **_SPARSE, **_GROUPED, "topk_method": "group_limited_greedy", "n_shared_experts": 1},
    ),
    "deepseek_v3_experts": (DeepseekV3Config, {**_LATENT_LOW, **_SPARSE, **_GROUPED, **_YARN_MSCALE}),
    "deepseek_v3_one_group": (
        DeepseekV3Config,
        {**_LATENT, **_SPARSE, "n_routed_experts": 9, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    ),
    "gemma2": (Gemma2Config, _GEMMA2),
    "gemma2_biases": (Gemma2Config, {**_GEMMA2, **_GEMMA2_BIASES}),
    "gemma3": (Gemma3TextConfig, _GEMMA3),
    "gemma3_256": (Gemma3TextConfig, {**_GEMMA3, **_GEMMA3_256}),
    "gemma4": (Gemma4TextConfig, _GEMMA4),
    "gemma4_dense": (Gemma4TextConfig, {**_GEMMA4, **_GEMMA4_DENSE}),
    "gemma4_experts": (Gemma4TextConfig, {**_GEMMA4, **_GEMMA4_DENSE, **_GEMMA4_EXPERTS}),
    "cohere": (CohereConfig, {"num_attention_heads": 4, "attention_bias": True, "logit_scale": 0.5}),
    "cohere2": (Cohere2Config, {**_COHERE2, "tie_word_embeddings": True}),
    "gpt_neox": (GPTNeoXConfig, {"num_attention_heads": 4}),
    "gpt_neox_in_turn": (
        GPTNeoXConfig,
        {
            "num_attention_heads": 2,
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
    ),
    "phi3": (Phi3Config, _PHI3),
    # Served at a quarter of what it was stretched to, its original context.
    "phi3_short": (
        Phi3Config,
        {
            **_PHI3,
            "max_position_embeddings": 4 * CONTEXT,
            "original_max_position_embeddings": CONTEXT,
            "sliding_window": 24,
            "tie_word_embeddings": True,
        },
    ),
    "starcoder2": (Starcoder2Config, _HEAD_10),
    "starcoder2_sliding": (
        Starcoder2Config,
        {**_HEAD_10, "sliding_window": 24, "use_bias": False, "tie_word_embeddings": True},
    ),
    "llama": (LlamaConfig, {**_HEAD_10, "tie_word_embeddings": True}),
    "llama_biases": (LlamaConfig, {**_HEAD_10, "attention_bias": True, "mlp_bias": True}),
    "llama_linear": (LlamaConfig, {**_HEAD_10, "rope_parameters": _LINEAR}),
    "llama_llama3": (LlamaConfig, {**_HEAD_10, "rope_parameters": _LLAMA3}),
    "llama_yarn": (LlamaConfig, {**_HEAD_10, "rope_parameters": _YARN}),
    "minicpm3": (
        MiniCPM3Config,
        {**_LATENT_LOW, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 20, "tie_word_embeddings": True},
    ),
    "minicpm3_plain": (
        MiniCPM3Config,
        {
            **_LATENT,
            "scale_depth": None,
            "dim_model_base": None,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {**_YARN, "mscale": 0.5, "mscale_all_dim": 0.7},
        },
    ),
    "mistral": (MistralConfig, {**_HEAD_16, "sliding_window": 24}),
    "ministral": (MinistralConfig, {**_HEAD_16, "sliding_window": 24, "layer_types": _LAYER_TYPES}),
    "mistral_full": (MistralConfig, {**_HEAD_16, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {**_HEAD_10, "tie_word_embeddings": True}),
    "qwen2_sliding": (Qwen2Config, {**_HEAD_10, **_SLIDING}),
    "qwen3": (Qwen3Config, _HEAD_16),
    "qwen3moe": (Qwen3MoeConfig, {**_HEAD_16, **_MOE, "norm_topk_prob": True}),
    "qwen3moe_mixed": (Qwen3MoeConfig, {**_HEAD_16, **_MOE, **_MOE_MIXED}),
    "qwen3_biases": (Qwen3Config, {**_HEAD_16, "attention_bias": True, "tie_word_embeddings": True}),
    "lfm2": (Lfm2Config, _LFM2_DENSE),
    "lfm2_biases": (
        Lfm2Config,
        {**_LFM2_DENSE, "conv_bias": True, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False},
    ),
    "lfm2_moe": (Lfm2MoeConfig, _LFM2_MOE),
    "lfm2_moe_plain": (
        Lfm2MoeConfig,
        {**_LFM2_MOE, "use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 0.7},
    ),
    "qwen3_next": (Qwen3NextConfig, _NEXT),
    "qwen3_next_biases": (Qwen3NextConfig, {**_NEXT, "attention_bias": True}),
    "qwen3_5": (Qwen3_5TextConfig, {**DELTA, "linear_conv_kernel_dim": 3, "tie_word_embeddings": True}),
    "smollm3": (SmolLM3Config, _SMOLLM3),
    "smollm3_sliding": (SmolLM3Config, {**_SMOLLM3, **_SMOLLM3_SLIDING}),
    "granite": (GraniteConfig, _GRANITE),
    "granite_biases": (GraniteConfig, {**_GRANITE, **_BIASES}),
    "olmo2": (Olmo2Config, {"hidden_size": 96, "attention_bias": True}),
    "olmo3": (Olmo3Config, _OLMO3),
    "exaone4": (Exaone4Config, _EXAONE4),
    "exaone4_full": (Exaone4Config, {**_EXAONE4, **_EXAONE4_FULL}),
    "glm4": (Glm4Config, _HEAD_16),
    "glm": (GlmConfig, {"head_dim": 32, "attention_bias": False, "tie_word_embeddings": True}),
    "ernie4_5": (Ernie4_5Config, {**_HEAD_16, "tie_word_embeddings": True}),
    "ernie4_5_biases": (Ernie4_5Config, {"head_dim": 32, "use_bias": True}),
    "ministral3": (Ministral3Config, _MINISTRAL3),
    "ministral3_sliding": (Ministral3Config, {**_MINISTRAL3, "sliding_window": 24, "tie_word_embeddings": True}),
    "gpt_oss": (GptOssConfig, _GPT_OSS),
    "gpt_oss_plain": (GptOssConfig, {**_GPT_OSS, **_GPT_OSS_PLAIN}),
    "mixtral": (MixtralConfig, {**_HEAD_16, "num_local_experts": 6}),
    "qwen2moe": (Qwen2MoeConfig, {"num_attention_heads": 4, **_MOE, "shared_expert_intermediate_size": 52}),
    "qwen3_5_moe": (Qwen3_5MoeTextConfig, {**DELTA, **_MOE, "shared_expert_intermediate_size": 52}),
    "olmoe": (OlmoeConfig, {"num_attention_heads": 4, "num_experts": 9, "num_experts_per_tok": 3}),
    "granitemoe": (GraniteMoeConfig, {"num_attention_heads": 4, "num_local_experts": 6}),
    "granitemoeshared": (
        GraniteMoeSharedConfig,
        {"num_attention_heads": 4, "num_local_experts": 6, "shared_intermediate_size": 52},
    ),
    "granitemoehybrid": (GraniteMoeHybridConfig, {**_GRANITE4, "num_local_experts": 6, "num_experts_per_tok": 2}),
    "granitemoehybrid_groups": (GraniteMoeHybridConfig, {**_GRANITE4, **_GRANITE4_GROUPS}),
    "falcon_h1": (FalconH1Config, _FALCON_H1),
    "falcon_h1_normed": (FalconH1Config, {**_FALCON_H1, **_FALCON_H1_NORMED}),
    "ernie4_5_moe": (
        Ernie4_5_MoeConfig,
        {"num_attention_heads": 4, "moe_num_experts": 9, "moe_k": 3, "moe_intermediate_size": 36},
    ),
    "gpt2": (GPT2Config, {"num_attention_heads": 4, "tie_word_embeddings": True}),
    # Heads of five; scores that hang on the layer alone.
    "gpt2_scales": (
        GPT2Config,
        {
            "hidden_size": 30,
            "n_inner": 52,
            "activation_function": "gelu",
            "layer_norm_epsilon": 0.01,
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
    ),
}


def family_of(config: type[PreTrainedConfig]) -> Architecture:
    """The row of the table of architectures that serves transformers' decoders of a config."""
    return find(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])


def make_reference(variant: str | Variant, **overrides: object) -> PreTrainedModel:
    """transformers' model of a variant, or of the one of that name; random weights, biases and norms included, the same
    in every call."""
    config_class, changes = VARIANTS[variant] if isinstance(variant, str) else variant
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    shape = {name: value for name, value in _SHAPE.items() if name in known}
    config = config_class(**deepcopy({**shape, **changes, **overrides}))  # it changes what it is given
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif name.endswith((*_NORMS, *_FACTORS)):
                neutral = round(parameter.mean().item())  # 0 where the model multiplies by 1 + w
                parameter.uniform_(neutral - 0.5, neutral + 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):
                buffer.normal_(std=0.3)
            elif name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def save(reference: PreTrainedModel, directory: Path) -> Path:
    """Writes config.json and safetensors, like a published checkpoint; returns ``directory``."""
    reference.save_pretrained(directory)
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, ModelConfig]:
    """The served model out of a checkpoint directory, by the way the runner takes."""
    config = parse_config(json.loads((directory / "config.json").read_text()))
    family = find(config.architecture)
    model = family.build(config, max_positions=CONTEXT, placement=Placement(dtype, CPU))
    load_weights(
        model.destinations(),
        sorted(directory.glob("*.safetensors")),
        ignore=model.ignores,
        twins=model.twins(),
        stacks=family.names.checkpoint.stacks,
        fp8=config.fp8,
        progress=_no_progress,
    )
    return model, config


def _no_progress(done: int, total: int) -> None:
    """Loading a tiny model is over before anybody looks."""


def reference_logits(reference: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """[T, V] fp32: transformers' logits at every position, in one go."""
    with torch.no_grad():
        output = reference(torch.tensor([list(token_ids)]), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def nobodys_pages(mixer: MixerConfig, num_blocks: int, dtype: torch.dtype) -> LayerKVCache | LayerLatents | LayerState:
    """A layer's pages, of which nothing has been written."""

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.full((num_blocks, *shape), torch.nan, dtype=dtype)

    if isinstance(mixer, AttentionConfig):
        return LayerKVCache(new(2, mixer.num_kv_heads, BLOCK_SIZE, mixer.head_dim))
    if isinstance(mixer, ShortConvConfig):
        return LayerState(new(mixer.conv_width - 1, mixer.channels), torch.empty(0), BLOCK_SIZE)
    if isinstance(mixer, LatentConfig):
        return LayerLatents(new(BLOCK_SIZE, mixer.width))
    if isinstance(mixer, MambaConfig):
        matrices = new(mixer.num_heads, mixer.state_dim, mixer.head_dim, dtype=torch.float32)
        return LayerState(new(mixer.conv_width - 1, mixer.channels), matrices, BLOCK_SIZE)
    channels = 2 * mixer.num_k_heads * mixer.k_dim + mixer.num_v_heads * mixer.v_dim
    matrices = new(mixer.num_v_heads, mixer.k_dim, mixer.v_dim, dtype=torch.float32)
    return LayerState(new(mixer.conv_width - 1, channels), matrices, BLOCK_SIZE)


class PagedExecution:
    """Runs a model over paged keys and values, step by step, as the runner does; logits of every token."""

    def __init__(
        self, model: Decoder, config: ModelConfig, dtype: torch.dtype = torch.float32, num_blocks: int = 64
    ) -> None:
        self._model = model
        self._vocab_size = config.vocab_size
        self._arena = StepArena(CONTEXT, CPU)
        self._last_token = torch.zeros(8, dtype=torch.int64)
        self._batch = InputBatch(
            [kv_group("full", num_blocks)],
            num_slots=8,
            max_tokens=CONTEXT,
            max_logit_rows=CONTEXT,
            max_model_len=CONTEXT,
            block_size=BLOCK_SIZE,
            device=CPU,
        )
        # What nobody wrote must not be read: it would show in every logit.
        heads = [(layer.num_heads, layer.num_kv_heads, layer.head_dim) for layer in config.attentions]
        heads += [(layer.num_heads, 1, layer.kv_rank) for layer in config.latents]
        rooms = [new_split_workspace(8, *shape, CPU) for shape in heads]
        self._split_workspace = max(rooms, key=Tensor.numel).fill_(torch.nan)
        kept = [nobodys_pages(mixer, num_blocks, dtype) for mixer in config.mixers]
        self.kv = [kept[keeper] for keeper in config.keepers]

    @torch.inference_mode()
    def step(self, rows: Sequence[ScheduledRow]) -> Tensor:
        """[L, V]: logits that the rows ask for."""
        inputs = self._batch.prepare(step_of(rows))
        self._batch.expand(inputs, self._last_token)
        tokens = inputs.tokens
        self._arena.begin(tokens.token_ids.numel())
        metas = [replace(inputs.metas[0], split_workspace=self._split_workspace)] * len(self.kv)
        hidden = self._model.forward(tokens.token_ids, tokens.positions, self.kv, metas, self._arena)
        logits = torch.full((tokens.logit_indices.numel(), self._vocab_size), torch.nan)
        self._model.logits(hidden, tokens.logit_indices, logits, self._arena)
        return logits

    def sequence(self, token_ids: Sequence[int], chunks: Sequence[int], blocks: Sequence[int], slot: int = 0) -> Tensor:
        """[T, V]: logits at every position of one sequence computed in steps of ``chunks`` tokens."""
        logits, start, held = [], 0, 0
        for size in chunks:
            end = start + size
            needed = -(-end // BLOCK_SIZE)
            row = row_of(slot, start, token_ids[start:end], blocks=blocks[held:needed], num_logits=size)
            logits.append(self.step([row]))
            start, held = end, needed
        return torch.cat(logits)
