"""Configs of GLM-4, a GGUF file of one, and ranks that share rows out whose pairs are put apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from transformers import Glm4Config, GlmConfig

from app.models.architectures import parse_config
from app.models.config import ConfigError, Rope
from app.store.errors import StoreError
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, resolved, write_model
from tests.models.test_config import attention_of
from tests.models.tiny import make_reference
from tests.runner.driver import engine_config
from tests.runner.ranks import run_on_ranks

GLM4_9B: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": True,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151552,
}
GLM_9B = {**GLM4_9B, "architectures": ["GlmForCausalLM"], "model_type": "glm", "rms_norm_eps": 1.5625e-07}


@pytest.mark.parametrize(("published", "theirs"), [(GLM4_9B, Glm4Config), (GLM_9B, GlmConfig)])
def test_the_9bs_of_the_hub(published: dict[str, Any], theirs: Any) -> None:
    config = parse_config(published)
    attention = attention_of(config)
    assert attention.rope == Rope(theta=1e4, width=64, interleaved=True)
    assert (attention.qkv_bias, attention.o_bias, attention.num_kv_heads) == (True, False, 2)
    assert parse_config(theirs(**published).to_dict()) == config
    silent = ("attention_bias", "head_dim", "num_key_value_heads", "partial_rotary_factor")
    assert parse_config({name: value for name, value in published.items() if name not in silent}) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partial_rotary_factor", 1.5),
        ("rope_scaling", {"rope_type": "default", "mrope_section": [8, 12, 12]}),
        ("hidden_act", "gelu"),
        ("model_type", "glm4_moe"),
        ("n_routed_experts", 8),
    ],
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**GLM4_9B, field: value})


METADATA = {"rope.dimension_count": 8, "attention.key_length": 16, "tokenizer.ggml.pre": "glm4"}


def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference("glm4", vocab_size=VOCAB_SIZE)
    is_the_model(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.GLM4, METADATA), reference)


def test_a_file_of_a_model_that_sees_images_is_refused(tmp_path: Path) -> None:
    reference = make_reference("glm4", vocab_size=VOCAB_SIZE)
    metadata = {**METADATA, "rope.dimension_sections": [2, 1, 1, 0]}
    with pytest.raises(StoreError, match="dimension_sections"):
        resolved(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.GLM4, metadata))


def test_ranks_put_the_pairs_of_their_own_heads_apart(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "m", "glm4")
    expected = expected_logprobs(directory)
    for served in run_on_ranks(engine_config(directory, tensor_parallel_size=2), tmp_path / "meeting", served_logprobs):
        torch.testing.assert_close(served, expected, rtol=0, atol=1e-4)
