"""Configs of OLMo 2 and 3, and GGUF files of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_ARCH
from transformers import Olmo2Config, Olmo3Config

from app.layers.rope_scaling import YarnScaling
from app.models.architectures import parse_config
from app.models.config import ConfigError, Rope
from app.runner.errors import RunnerError
from app.runner.loading import check_shares
from app.store.errors import StoreError
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, resolved, write_model
from tests.models.test_config import attention_of, windows_of
from tests.models.tiny import make_reference

OLMO2_1B: dict[str, Any] = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 16,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
OLMO3_7B: dict[str, Any] = {
    "architectures": ["Olmo3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "rope_theta": 500000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 100278,
}


def test_the_1b_of_the_hub() -> None:
    config = parse_config(OLMO2_1B)
    attention = attention_of(config)
    assert (attention.qk_norm, attention.qk_norm_whole, attention.rope) == (True, True, Rope(theta=5e5, width=128))
    assert set(windows_of(config)) == {None}
    assert parse_config(Olmo2Config(**OLMO2_1B).to_dict()) == config


def test_the_7b_of_the_third_has_yarn_where_all_positions_are_seen() -> None:
    config = parse_config(OLMO3_7B)
    assert (config.context_length, windows_of(config)) == (65536, (4096, 4096, 4096, None) * 8)
    sliding, full = config.attentions[0].rope, config.attentions[3].rope
    assert sliding == Rope(theta=5e5, width=128)
    assert full is not None
    assert isinstance(full.scaling, YarnScaling)
    assert (full.theta, full.scaling.factor, full.scaling.attention_factor) == (5e5, 8, 1.2079441541679836)
    assert parse_config(Olmo3Config(**OLMO3_7B).to_dict()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": None, "rope_scaling": None, "rope_theta": None},
        {"layer_types": None, "rope_theta": 1e4},
        {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 7.0}}},
        {
            "rope_theta": 3e4,
            "rope_scaling": None,
            "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 7.0}},
        },
    ],
)
def test_absent_fields_are_what_transformers_takes_them_for(changes: dict[str, Any]) -> None:
    given = {name: value for name, value in {**OLMO3_7B, **changes}.items() if value is not None}
    config, theirs = parse_config(given), Olmo3Config(**given)
    for attention, kind in zip(config.attentions, theirs.layer_types, strict=True):
        rope = theirs.rope_parameters[kind]
        assert attention.window == (theirs.sliding_window if kind == "sliding_attention" else None)
        assert attention.rope is not None
        assert attention.rope.theta == rope["rope_theta"]
        assert (attention.rope.scaling is None) == (rope["rope_type"] == "default")


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (OLMO2_1B, "sliding_window", 64),
        (OLMO2_1B, "model_type", "olmo3"),
        (OLMO2_1B, "clip_qkv", 8.0),
        (OLMO3_7B, "layer_types", ["full_attention"]),
        (OLMO3_7B, "sliding_window", None),
        (OLMO3_7B, "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        (OLMO3_7B, "rope_scaling", [8.0]),
    ],
)
def test_what_would_change_numbers_is_refused(config: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**config, field: value})


def test_ranks_cannot_share_a_norm_over_all_heads() -> None:
    check_shares(parse_config(OLMO2_1B), 1)
    with pytest.raises(RunnerError, match="ranks cannot share the layers of Olmo2ForCausalLM"):
        check_shares(parse_config(OLMO2_1B), 2)


def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference("olmo2", vocab_size=VOCAB_SIZE)
    metadata = {"tokenizer.ggml.pre": "dbrx"}
    is_the_model(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.OLMO2, metadata), reference)


WINDOWED = {
    "rope.freq_base": 5e5,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_attn_factor": 1.1386294361119891,
    "attention.sliding_window": 24,
    "tokenizer.ggml.pre": "dbrx",
}


@pytest.mark.parametrize("types", [None, [True, False, True, True]])
def test_a_file_with_a_window_is_an_olmo_3(tmp_path: Path, types: list[bool] | None) -> None:
    kinds = {True: "sliding_attention", False: "full_attention"}
    layer_types = None if types is None else [kinds[slides] for slides in types]
    reference = make_reference("olmo3", vocab_size=VOCAB_SIZE, layer_types=layer_types)
    metadata = {**WINDOWED, "attention.sliding_window_pattern": types}
    is_the_model(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.OLMO2, metadata), reference)


@pytest.mark.parametrize(
    ("key", "value"), [("attention.sliding_window_pattern", 3), ("rope.scaling.yarn_attn_factor", 1.3)]
)
def test_metadata_that_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    reference = make_reference("olmo3", vocab_size=VOCAB_SIZE)
    with pytest.raises(StoreError, match=key):
        resolved(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.OLMO2, {**WINDOWED, key: value}))
