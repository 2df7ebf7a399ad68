"""Configs of SmolLM3, and a GGUF file of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_ARCH
from transformers import SmolLM3Config

from app.models.architectures import parse_config
from app.models.config import ConfigError, Rope
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, permuted, write_model
from tests.models.test_config import windows_of
from tests.models.tiny import make_reference

SMOLLM3_3B: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
SMALL = {**SMOLLM3_3B, "num_hidden_layers": 4, "no_rope_layers": None, "layer_types": None}


def rotated(config: dict[str, Any]) -> list[bool]:
    return [attention.rope is not None for attention in parse_config(config).attentions]


def test_the_3b_of_the_hub() -> None:
    config = parse_config(SMOLLM3_3B)
    assert (config.tie_word_embeddings, config.context_length) == (True, 65536)
    assert rotated(SMOLLM3_3B) == [True, True, True, False] * 9
    assert config.attentions[0].rope == Rope(theta=5e6, width=128)
    assert set(windows_of(config)) == {None}
    assert parse_config(SmolLM3Config(**SMOLLM3_3B).to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True, True, False]),
        ({"no_rope_layer_interval": 2}, [True, False] * 2),
        ({"no_rope_layers": [0, 1, 1, 1, 0, 0], "no_rope_layer_interval": 2}, [False, True, True, True]),
    ],
)
def test_which_layers_rotate_is_what_transformers_takes_it_for(changes: dict[str, Any], expected: list[bool]) -> None:
    given = {**SMALL, **changes}
    assert rotated(given) == expected
    assert list(map(bool, SmolLM3Config(**given).no_rope_layers))[:4] == expected


def test_layers_slide_that_do_not_rotate() -> None:
    given = {**SMALL, "use_sliding_window": True, "sliding_window": 64}
    assert windows_of(parse_config(given)) == (None, None, None, 64)
    kinds = {"sliding_attention": 64, "full_attention": None}
    assert [kinds[kind] for kind in SmolLM3Config(**given).layer_types] == [None, None, None, 64]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("no_rope_layers", [1, 0]),
        ("no_rope_layer_interval", 0),
        ("layer_types", ["sliding_attention"] * 4),
        ("hidden_act", "gelu"),
        ("logit_scale", 0.5),
        ("partial_rotary_factor", 0.5),
    ],
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**SMALL, field: value})


def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference("smollm3", vocab_size=VOCAB_SIZE)
    metadata = {"rope.freq_base": 2e6, "tokenizer.ggml.pre": "smaug-bpe"}
    file = write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.SMOLLM3, metadata, stored=permuted(reference))
    is_the_model(file, reference)
