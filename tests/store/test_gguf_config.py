from __future__ import annotations

import json
from collections.abc import ItemsView
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoints.gguf_header import read_gguf_header
from app.models.architectures import parse_config
from app.store.errors import StoreError
from app.store.files import read_declared_tokens
from app.store.gguf_config import config_json, generation_config_json, tokenizer_config_json
from tests.store.tiny import CONFIG, FFN, HEADS, HIDDEN, LAYERS, VOCAB, Array, random_weights, write_gguf


def read_named_tokens(directory: Path, tokenizer_config: dict[str, Any]) -> ItemsView[str, str]:
    """Tokens with names, as the text side gets them of a directory."""
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return read_declared_tokens(directory, b"{}").named.items()


def config_of(tmp_path: Path, arch: str = "llama", **options: Any) -> dict[str, Any]:
    return config_json(read_gguf_header(write_gguf(tmp_path / "m.gguf", arch=arch, **options)))


def llama3_factors(theta: float, head_dim: int, factor: float, low: float = 1.0, high: float = 4.0) -> Array:
    """llama.cpp's converter, value by value."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < 8192 / high:
            factors.append(1.0)
        elif wavelength > 8192 / low:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(
    ("arch", "architecture"),
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")],
)
def test_shape_of_each_architecture(tmp_path: Path, arch: str, architecture: str) -> None:
    config = parse_config(config_of(tmp_path, arch))
    assert config.architecture == architecture
    assert config.tie_word_embeddings
    assert config.norm_eps == 1e-5
    assert config.context_length == 128
    assert config.vocab_size == len(VOCAB)
    expected = parse_config(CONFIG | {"architectures": [architecture], "head_dim": HIDDEN // HEADS})
    assert config == expected


def test_an_output_matrix_that_is_no_copy_means_untied(tmp_path: Path) -> None:
    weights = random_weights()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    assert config_of(tmp_path, weights=weights)["tie_word_embeddings"] is True
    weights["lm_head.weight"][-1, -1] += 1
    assert config_of(tmp_path, weights=weights)["tie_word_embeddings"] is False


def test_biases_of_the_llama_architecture(tmp_path: Path) -> None:
    biases = {"blk.0.attn_q.bias": np.zeros(HIDDEN, np.float32), "blk.0.ffn_gate.bias": np.zeros(FFN, np.float32)}
    config = config_of(tmp_path, tensors=biases)
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)


def test_head_width_of_its_own(tmp_path: Path) -> None:
    extra = {"qwen3.attention.key_length": 16, "qwen3.attention.value_length": 16}
    assert config_of(tmp_path, "qwen3", extra=extra)["head_dim"] == 16


def test_one_value_a_layer_is_one_value_if_they_agree(tmp_path: Path) -> None:
    assert config_of(tmp_path, extra={"llama.attention.head_count_kv": [2, 2]})["num_key_value_heads"] == 2
    with pytest.raises(StoreError, match=r"llama\.feed_forward_length differs from layer to layer"):
        config_of(tmp_path, extra={"llama.feed_forward_length": [64, 32]})


def test_sliding_window_of_the_llama_architecture_is_mistral(tmp_path: Path) -> None:
    config = config_of(tmp_path, extra={"llama.attention.sliding_window": 16})
    assert [attention.window for attention in parse_config(config).attentions] == [16, 16]
    whole = config_of(tmp_path, extra={"llama.attention.sliding_window": 128})
    assert [attention.window for attention in parse_config(whole).attentions] == [None, None]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scale_linear": 1.0}, None),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.attn_factor": 1.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, extra: dict[str, Any], expected: dict[str, Any] | None) -> None:
    config = config_of(tmp_path, extra={f"llama.{key}": value for key, value in extra.items()})
    assert config["rope_scaling"] == expected
    parse_config(config)


@pytest.mark.parametrize(("factor", "theta"), [(8.0, 500_000.0), (32.0, 500_000.0)])
def test_llama3_scaling_is_recovered_from_its_table(tmp_path: Path, factor: float, theta: float) -> None:
    table = {"rope_freqs.weight": llama3_factors(theta, HIDDEN // HEADS, factor)}
    config = config_of(tmp_path, tensors=table, extra={"llama.rope.freq_base": theta})
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize(
    "table",
    [
        llama3_factors(500_000.0, 8, 8.0, low=2.0, high=32.0),
        np.array([1, 2, 3, 4], np.float32),
        np.array([1, 1, np.nan, 8], np.float32),
        np.zeros(4, np.float32),
        np.ones(3, np.float32),
        np.ones(4, np.float16),
    ],
)
def test_rope_table_that_is_not_llama3s(tmp_path: Path, table: Array) -> None:
    with pytest.raises(StoreError, match=r"rope_freqs\.weight"):
        config_of(tmp_path, tensors={"rope_freqs.weight": table}, extra={"llama.rope.freq_base": 500_000.0})


@pytest.mark.parametrize(
    ("arch", "extra", "message"),
    [
        ("gemma", {}, "architecture 'gemma' is not supported; the nearest that is served is gemma[234] "),
        ("llama", {"llama.expert_count": 8}, r"the metadata has no llama\.expert_used_count"),
        ("llama", {"llama.embedding_length": None}, r"the metadata has no llama\.embedding_length"),
        ("llama", {"llama.context_length": "long"}, r"llama\.context_length = 'long' is of the wrong type"),
        ("llama", {"llama.block_count": True}, r"llama\.block_count = True is of the wrong type"),
        ("llama", {"llama.attention.head_count": 0}, "0 attention heads"),
        ("llama", {"llama.rope.dimension_count": 4}, r"llama\.rope\.dimension_count differs from the head width 8"),
        ("llama", {"llama.rope.freq_base": float("nan")}, r"llama\.rope\.freq_base = nan"),
        ("qwen2", {"qwen2.attention.sliding_window": 16}, "sliding_window does not say which layers slide"),
        ("llama", {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "'longrope'"),
        (
            "llama",
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.yarn_log_multiplier": 0.1,
            },
            "yarn_log_multiplier is not supported",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, arch: str, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        config_of(tmp_path, arch, extra=extra)
    assert str(caught.value).startswith(str(tmp_path / "m.gguf"))
    assert "\n" not in str(caught.value)


def test_embedding_is_needed_for_the_vocabulary(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["model.embed_tokens.weight"]
    with pytest.raises(StoreError, match=r"tensor 'token_embd\.weight' is missing"):
        config_of(tmp_path, weights=weights)


def test_tokenizer_and_generation_config(tmp_path: Path) -> None:
    extra = {
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.eom_token_id": 1,
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
    }
    header = read_gguf_header(write_gguf(tmp_path / "m.gguf", extra=extra))
    assert tokenizer_config_json(header) == {
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "add_bos_token": False,
        "chat_template": "{{ messages[0].content }}",
    }
    assert generation_config_json(header) == {"eos_token_id": [1, 2], "temperature": 0.5, "top_k": 20}


def test_named_tokens_that_are_ordinary_text_are_not_named(tmp_path: Path) -> None:
    names = ["padding_token_id", "unknown_token_id", "seperator_token_id", "cls_token_id", "mask_token_id"]
    ids = {f"tokenizer.ggml.{name}": token_id for name, token_id in zip(names, [3, 4, 2, 5, 0], strict=True)}
    config = tokenizer_config_json(read_gguf_header(write_gguf(tmp_path / "m.gguf", extra=ids)))
    assert {name: text for name, text in config.items() if name.endswith("_token") and isinstance(text, str)} == {
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "sep_token": "<|pad|>",
        "mask_token": "<|bos|>",
    }


@pytest.mark.parametrize("names", [("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle")])
def test_tokens_for_filling_in_the_middle_have_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    ids = {f"tokenizer.ggml.{name}_token_id": token_id for token_id, name in enumerate(names)}
    config = tokenizer_config_json(read_gguf_header(write_gguf(tmp_path / "m.gguf", extra=ids)))
    assert (config["prefix_token"], config["suffix_token"], config["middle_token"]) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert read_named_tokens(tmp_path, config) >= {"prefix_token": "<|bos|>", "middle_token": "<|pad|>"}.items()


@pytest.mark.parametrize("count", [0, 1, None])
def test_file_that_is_not_split(tmp_path: Path, count: int | None) -> None:
    assert config_of(tmp_path, extra={"split.count": count})["num_hidden_layers"] == LAYERS


def test_special_tokens_that_the_model_does_not_have(tmp_path: Path) -> None:
    names = ("bos", "eos", "padding", "unknown")
    none = {f"tokenizer.ggml.{name}_token_id": 2**32 - 1 for name in names}
    header = read_gguf_header(write_gguf(tmp_path / "m.gguf", extra=none | {"tokenizer.ggml.eot_token_id": 1}))
    assert tokenizer_config_json(header) == {
        "add_bos_token": False,
        "chat_template": "{{ messages[0].content }}",
    }
    assert generation_config_json(header) == {"eos_token_id": [1]}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tokenizer.chat_template": ["a"]}, "chat_template is not a text"),
        ({"general.sampling.temp": "hot"}, r"general\.sampling\.temp is not a finite number"),
        ({"general.sampling.top_p": float("nan")}, r"general\.sampling\.top_p is not a finite number"),
        ({"tokenizer.ggml.eos_token_id": True}, r"eos_token_id = True is not in the vocabulary"),
    ],
)
def test_text_side_that_is_malformed(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    header = read_gguf_header(write_gguf(tmp_path / "m.gguf", extra=extra))
    with pytest.raises(StoreError, match=message) as caught:
        tokenizer_config_json(header), generation_config_json(header)
    assert str(caught.value).startswith(str(tmp_path / "m.gguf"))


def test_special_token_outside_the_vocabulary(tmp_path: Path) -> None:
    header = read_gguf_header(write_gguf(tmp_path / "m.gguf", extra={"tokenizer.ggml.eos_token_id": 999}))
    with pytest.raises(StoreError, match=r"tokenizer\.ggml\.eos_token_id = 999 is not in the vocabulary"):
        tokenizer_config_json(header)
