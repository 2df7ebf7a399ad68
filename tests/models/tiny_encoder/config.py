"""The encoder's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    heads = config["num_attention_heads"]
    head_dim = config["hidden_size"] // heads
    attention = AttentionConfig(
        num_heads=heads,
        num_kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=None,
        window=config["window"],
        qkv_bias=True,
    )
    return ModelConfig(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        norm_eps=config["rms_norm_eps"],
        layers=(LayerConfig(attention, MlpConfig(width=config["intermediate_size"])),) * config["num_hidden_layers"],
        context_length=config["max_position_embeddings"],
        tie_word_embeddings=False,
        positions=config["max_position_embeddings"],
    )
