"""The table of rotary angles equals transformers' cos and sin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

from app.layers.config import PositionScale, Rope
from app.layers.rope_scaling import LongRopeScaling
from app.layers.rotary import query_scales, rope_table
from app.models.architectures import parse_config

CONTEXT = 2048
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [1.0 + i for i in range(16)],
    "original_max_position_embeddings": 512,
}
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
    "longrope": LONG,
    "longrope_short": {**LONG, "original_max_position_embeddings": CONTEXT, "factor": 4.0},
    "longrope_attention_factor": {**LONG, "attention_factor": 1.5},
    "longrope_shorter": {**LONG, "factor": 0.5},
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


def test_long_factors_turn_all_positions_of_a_table_beyond_the_original_context() -> None:
    """At its end too, and no sooner."""
    scaling = LongRopeScaling(
        short_factor=(1.0, 2.0), long_factor=(4.0, 8.0), original_max_position_embeddings=64, factor=2.0
    )
    rope = Rope(theta=10_000.0, width=4, scaling=scaling)
    within, beyond = (rope_table(rope, positions, torch.device("cpu")) for positions in (64, 65))
    amplitude = (1 + torch.tensor(2.0).log() / torch.tensor(64.0).log()).sqrt()
    for table, factors in ((within, (1.0, 2.0)), (beyond, (4.0, 8.0))):
        angles = torch.arange(64)[:, None] / (torch.tensor(factors) * torch.tensor([1.0, 100.0]))
        torch.testing.assert_close(table[:64], torch.cat((angles.cos(), angles.sin()), 1) * amplitude)


def test_scalings_differ_from_the_plain_table() -> None:
    plain = rope_table(Rope(theta=10_000.0, width=32), CONTEXT, torch.device("cpu"))
    for variant in ("linear", "llama3", "yarn", "longrope"):
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


def test_factors_on_queries_equal_transformers() -> None:
    expected = get_llama_4_attn_scale(torch.arange(CONTEXT)[None], 0.1, 300)[0, 0, :, 0]
    scales = query_scales(PositionScale(beta=0.1, interval=300), CONTEXT, torch.device("cpu"))
    torch.testing.assert_close(scales, expected, rtol=1e-7, atol=0)
    assert scales.unique().numel() == 7
