"""The table of rotary angles equals transformers' cos and sin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from app.layers.config import Rope
from app.layers.rotary import rope_table
from app.models.architectures import parse_config

CONTEXT = 2048
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": YARN,
    "yarn_attention_factor": {**YARN, "attention_factor": 0.8},
    "yarn_mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn_betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn_not_truncated": {**YARN, "truncate": False},
    "yarn_shorter": {**YARN, "factor": 1.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_table_equals_transformers(variant: str, theta: float) -> None:
    reference_config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={**VARIANTS[variant], "rope_theta": theta},
    )
    positions = torch.arange(CONTEXT)
    cos, sin = LlamaRotaryEmbedding(reference_config)(torch.zeros(1), positions[None])
    rope = parse_config(reference_config.to_dict()).attentions[0].rope
    assert rope is not None
    table = rope_table(rope, CONTEXT, torch.device("cpu"))
    half = rope.width // 2
    assert table.shape == (CONTEXT, 32)
    assert table.dtype is torch.float32
    # Same operations in the same order; an ulp of an angle near 2,048 is 1.2e-4.
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], rtol=0, atol=1e-6)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], rtol=0, atol=1e-6)


def test_scalings_differ_from_the_plain_table() -> None:
    plain = rope_table(Rope(theta=10_000.0, width=32), CONTEXT, torch.device("cpu"))
    for variant in ("linear", "llama3", "yarn"):
        config = LlamaConfig(
            architectures=["LlamaForCausalLM"],
            hidden_size=64,
            num_attention_heads=2,
            rope_parameters={**VARIANTS[variant], "rope_theta": 10_000.0},
        )
        rope = parse_config(config.to_dict()).attentions[0].rope
        assert rope is not None
        scaled = rope_table(rope, CONTEXT, torch.device("cpu"))
        assert (scaled - plain).abs().max() > 0.1
