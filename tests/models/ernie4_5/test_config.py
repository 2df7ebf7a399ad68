"""Configs of dense ERNIE 4.5, and a GGUF file of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_ARCH
from transformers import Ernie4_5Config

from app.models.architectures import parse_config
from app.models.config import ConfigError, Rope
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, write_model
from tests.models.test_config import attention_of, mlp_of
from tests.models.tiny import make_reference

ERNIE_03B: dict[str, Any] = {
    "architectures": ["Ernie4_5ForCausalLM"],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5",
    "num_attention_heads": 16,
    "num_hidden_layers": 18,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "vocab_size": 103424,
}


def test_the_small_one_of_the_hub() -> None:
    config = parse_config(ERNIE_03B)
    assert attention_of(config).rope == Rope(theta=5e5, width=128, interleaved=True)
    assert config.tie_word_embeddings
    assert parse_config(Ernie4_5Config(**ERNIE_03B).to_dict()) == config
    silent = ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "use_bias")
    assert parse_config({name: value for name, value in ERNIE_03B.items() if name not in silent}) == config


def test_a_null_for_the_width_of_heads_divides_the_stream() -> None:
    assert attention_of(parse_config({**ERNIE_03B, "head_dim": None})).head_dim == 64
    assert Ernie4_5Config(**{**ERNIE_03B, "head_dim": None}).head_dim == 64


def test_biases_are_everywhere_or_nowhere() -> None:
    config = parse_config({**ERNIE_03B, "use_bias": True})
    assert (attention_of(config).qkv_bias, attention_of(config).o_bias, mlp_of(config).bias) == (True,) * 3


@pytest.mark.parametrize(
    ("field", "value"), [("rope_scaling", {"type": "ntk2"}), ("hidden_act", "gelu"), ("num_experts", 8)]
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**ERNIE_03B, field: value})


@pytest.mark.parametrize("variant", ["ernie4_5", "ernie4_5_biases"])
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, variant: str) -> None:
    reference = make_reference(variant, vocab_size=VOCAB_SIZE)
    metadata = {"rope.freq_base": 5e5, "attention.key_length": reference.config.head_dim}
    is_the_model(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.ERNIE4_5, metadata), reference)
