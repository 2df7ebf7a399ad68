"""Configs of EXAONE 4, and GGUF files of both shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_ARCH
from transformers import Exaone4Config

from app.layers.rope_scaling import Llama3Scaling
from app.models.architectures import parse_config
from app.models.config import ConfigError
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, write_model
from tests.models.test_config import windows_of
from tests.models.tiny import make_reference

EXAONE4_32B: dict[str, Any] = {
    "architectures": ["Exaone4ForCausalLM"],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 27392,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 16,
    "max_position_embeddings": 131072,
    "model_type": "exaone4",
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 1000000,
    "sliding_window": 4096,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False,
    "vocab_size": 102400,
}
BY_PERIOD = {name: value for name, value in EXAONE4_32B.items() if name != "layer_types"} | {
    "sliding_window_pattern": 4
}


def rotated(config: dict[str, Any]) -> tuple[bool, ...]:
    return tuple(attention.rope is not None for attention in parse_config(config).attentions)


def test_the_32b_of_the_hub() -> None:
    config = parse_config(EXAONE4_32B)
    assert windows_of(config) == (4096, 4096, 4096, None) * 16
    assert rotated(EXAONE4_32B) == (True, True, True, False) * 16
    rope = config.attentions[0].rope
    assert rope is not None
    assert isinstance(rope.scaling, Llama3Scaling)
    assert (config.attentions[0].qk_norm, config.attentions[0].qk_norm_whole) == (True, False)
    assert parse_config(Exaone4Config(**EXAONE4_32B).to_dict()) == config
    assert parse_config(BY_PERIOD) == config


def test_without_a_window_all_layers_rotate() -> None:
    full = {**EXAONE4_32B, "sliding_window": None, "layer_types": ["full_attention"] * 64}
    assert rotated(full) == (True,) * 64
    assert rotated({name: value for name, value in full.items() if name != "layer_types"}) == (True,) * 64
    assert rotated({**full, "sliding_window": 4096}) == (False,) * 64, "as transformers has it"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sliding_window_pattern", "LLLG"),
        ("sliding_window_pattern", 0),
        ("hidden_act", "gelu"),
        ("num_key_value_heads", 7),
        ("attn_logit_softcapping", 50.0),
    ],
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**BY_PERIOD, field: value})


@pytest.mark.parametrize(
    ("variant", "period", "metadata"),
    [
        ("exaone4_full", 4, {}),
        ("exaone4", 2, {"attention.sliding_window": 24, "attention.sliding_window_pattern": [True, False] * 2}),
        ("exaone4", 2, {"attention.sliding_window": 24, "attention.sliding_window_pattern": 2}),
        ("exaone4", 4, {"attention.sliding_window": 24}),
    ],
)
def test_a_gguf_file_is_the_model_it_was_written_of(
    tmp_path: Path, variant: str, period: int, metadata: dict[str, Any]
) -> None:
    reference = make_reference(variant, vocab_size=VOCAB_SIZE, sliding_window_pattern=period)
    metadata = {"tokenizer.ggml.pre": "exaone4", **metadata}
    is_the_model(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.EXAONE4, metadata), reference)
