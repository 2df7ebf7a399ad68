"""Configs of Ministral 3 and of what sees images around one, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Ministral3Config, Mistral3Config, PreTrainedModel

from app.models.architectures import parse_config
from app.models.config import ConfigError, PositionScale
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, permuted, write_model
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS, close
from tests.models.test_config import attention_of, rope_of, windows_of
from tests.models.tiny import VARIANTS, PagedExecution, load, make_reference

MINISTRAL3_8B: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 262144,
    "model_type": "ministral3",
    "num_attention_heads": 32,
    "num_hidden_layers": 34,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 16.0,
        "llama_4_scaling_beta": 0.1,
        "max_position_embeddings": 262144,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
        "type": "yarn",
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 131072,
}
TEXT = {name: value for name, value in MINISTRAL3_8B.items() if name not in ("architectures", "tie_word_embeddings")}
SMALL_24B: dict[str, Any] = {
    **{name: value for name, value in TEXT.items() if name != "rope_parameters"},
    "model_type": "mistral",
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "max_position_embeddings": 131072,
    "rope_theta": 1e9,
}
ROPE: dict[str, Any] = VARIANTS["ministral3"][1]["rope_parameters"]
SEEING: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "image_token_index": 10,
    "model_type": "mistral3",
    "spatial_merge_size": 2,
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral"},
}


def test_the_8b_of_the_hub() -> None:
    config = parse_config(MINISTRAL3_8B)
    assert attention_of(config).query_scale == PositionScale(beta=0.1, interval=16384)
    assert (config.context_length, set(windows_of(config))) == (262144, {None})
    assert parse_config(Ministral3Config(**MINISTRAL3_8B).to_dict()) == config
    silent = ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "sliding_window")
    assert parse_config({name: value for name, value in MINISTRAL3_8B.items() if name not in silent}) == config


def test_the_text_part_of_what_sees_images() -> None:
    text, ministral = parse_config({**SEEING, "text_config": TEXT}), parse_config(MINISTRAL3_8B)
    assert text.layers == ministral.layers
    assert text.tie_word_embeddings, "unless its files have both tensors"
    assert not parse_config({**SEEING, "text_config": TEXT, "tie_word_embeddings": False}).tie_word_embeddings
    small = parse_config({**SEEING, "text_config": SMALL_24B})
    assert (attention_of(small).query_scale, set(windows_of(small))) == (None, {None})
    assert rope_of(small).theta == 1e9


def test_a_factor_of_zero_is_none() -> None:
    rope = {**MINISTRAL3_8B["rope_parameters"], "llama_4_scaling_beta": 0}
    assert attention_of(parse_config({**MINISTRAL3_8B, "rope_parameters": rope})).query_scale is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {**ROPE, "llama_4_scaling_beta": -1.0}}, "llama_4_scaling_beta"),
        ({"rope_parameters": {**ROPE, "llama_4_scaling_beta": "0.1"}}, "llama_4_scaling_beta"),
        ({"rope_parameters": {"rope_theta": 1e4, "llama_4_scaling_beta": 0.1}}, "original_max_position_embeddings"),
        ({"layer_types": ["sliding_attention"] * 34}, "layer_types"),
        ({"sliding_window": 64, "layer_types": ["full_attention"] * 34}, "layer_types"),
        ({"model_type": "mistral4"}, "model_type"),
        ({"num_local_experts": 8}, "num_local_experts"),
    ],
)
def test_what_would_change_numbers_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**MINISTRAL3_8B, **changes})


def test_a_mistral_has_no_factor_on_queries() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e9, "llama_4_scaling_beta": 0.1}
    with pytest.raises(ConfigError, match="llama_4_scaling_beta"):
        parse_config({**SEEING, "text_config": {**SMALL_24B, "rope_parameters": rope}})


@pytest.mark.parametrize("beta", [0.3, 0])
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, beta: float) -> None:
    rope = {**ROPE, "llama_4_scaling_beta": beta}
    reference = make_reference("ministral3", vocab_size=VOCAB_SIZE, rope_parameters=rope)
    metadata = {
        "attention.key_length": 16,
        "attention.temperature_scale": beta or None,
        "rope.freq_base": 1e4,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 8.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_log_multiplier": 1.0,
        "tokenizer.ggml.pre": "tekken",
    }
    file = write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.MISTRAL3, metadata, stored=permuted(reference))
    is_the_model(file, reference)


@pytest.fixture(scope="module", params=[False, True], ids=["own_head", "tied"])
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model that sees images, and its directory."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    text = make_reference("ministral3").config.to_dict()
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=127, tie_word_embeddings=request.param
    )
    torch.manual_seed(2)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name or "lm_head" in name:
                parameter.normal_(std=0.2)
    directory = tmp_path_factory.mktemp("seeing")
    model.save_pretrained(directory)
    return model, directory


def test_the_text_part_is_served_out_of_its_files(seeing: tuple[PreTrainedModel, Path]) -> None:
    reference, directory = seeing
    tied = reference.config.tie_word_embeddings
    assert ("language_model.lm_head.weight" in load_file(directory / "model.safetensors")) != tied
    model, config = load(directory)
    assert config.architecture == "Mistral3ForConditionalGeneration"
    assert config.tie_word_embeddings == tied
    tokens = [token % 127 for token in TOKENS]
    with torch.no_grad():
        expected = reference(torch.tensor([tokens]), use_cache=False).logits[0]
    close(PagedExecution(model, config).sequence(tokens, [60, 40], SHUFFLED_BLOCKS), expected)
