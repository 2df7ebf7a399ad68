"""A MiniCPM3 out of a GGUF file, and what its ``config.json`` says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import MiniCPM3Config

from app.checkpoints.gguf_header import read_gguf_header
from app.layers.rope_scaling import LongRopeScaling
from app.models.architectures import parse_config
from app.models.config import ConfigError, LatentConfig
from app.runner.start import make_runner
from app.store import Store, resolve
from app.store.gguf_config import config_json
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.runner.driver import discard, engine_config
from tests.store.tiny import VOCAB, write_gguf

ARCH = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MINICPM3]
METADATA: dict[str, Any] = {
    "block_count": 3,
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.q_lora_rank": 24,
    "attention.kv_lora_rank": 32,
    "attention.key_length": 20,
    "rope.dimension_count": 8,
}
"""Files leave out how wide values are: as wide as a head has of the stream."""
DEFAULT: dict[str, Any] = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "v_head_dim": None}
"""The factors that files do not say."""
MINICPM3_4B: dict[str, Any] = {
    "architectures": ["MiniCPM3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 6400,
    "kv_lora_rank": 256,
    "max_position_embeddings": 32768,
    "model_type": "minicpm3",
    "num_attention_heads": 40,
    "num_hidden_layers": 62,
    "num_key_value_heads": 40,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.1] * 16,
        "original_max_position_embeddings": 32768,
        "short_factor": [1.0] * 16,
        "type": "longrope",
    },
    "vocab_size": 73448,
}


def test_a_gguf_file_is_the_same_model(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", "minicpm3", vocab_size=len(VOCAB), **DEFAULT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MINICPM3, 3)
    tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found is not None
        tensors[found] = tensor.numpy()
    extra = {f"{ARCH}.{key}": value for key, value in METADATA.items()} | {"tokenizer.ggml.pre": "qwen2"}
    file = write_gguf(tmp_path / "m.gguf", {}, arch=ARCH, extra=extra, tensors=tensors)
    config = parse_config(config_json(read_gguf_header(file)))
    assert config == parse_config(json.loads((directory / "config.json").read_text()))
    files = resolve(str(file), Store(tmp_path / "home"))
    engine = engine_config(files.directory, weights=tuple(map(str, files.weights)))
    served = served_logprobs(make_runner(engine, discard))
    torch.testing.assert_close(served, expected_logprobs(directory), rtol=0, atol=1e-4)


def test_the_published_shape() -> None:
    config = parse_config(MINICPM3_4B)
    (latent,) = set(config.latents)
    assert isinstance(latent, LatentConfig)
    assert (latent.num_heads, latent.width, latent.v_dim, latent.interleaved) == (40, 288, 64, False)
    assert isinstance(latent.rope.scaling, LongRopeScaling)
    assert latent.scale == 96**-0.5
    assert latent.output_scale == pytest.approx(1.4 / math.sqrt(62))
    assert config.layers[0].mlp.width == 6400
    assert (config.embedding_scale, config.logit_scale, config.tie_word_embeddings) == (12.0, 0.1, True)


def test_absent_fields_are_what_transformers_takes_them_for() -> None:
    given = {name: value for name, value in MINICPM3_4B.items() if "rank" not in name and "_dim" not in name}
    theirs, ours = MiniCPM3Config(**given), parse_config(given)
    latent = ours.latents[0]
    assert (latent.q_rank, latent.kv_rank) == (theirs.q_lora_rank, theirs.kv_lora_rank)
    assert (latent.nope_dim, latent.rope_dim) == (theirs.qk_nope_head_dim, theirs.qk_rope_head_dim)
    assert latent.v_dim == theirs.v_head_dim
    assert ours.logit_scale == 1 / theirs.logits_scaling
    assert ours.embedding_scale == theirs.scale_emb


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_depth", -1.0),
        ("scale_emb", "much"),
        ("dim_model_base", 0),
        ("n_routed_experts", 4),
        ("rope_interleave", True),
        ("residual_multiplier", 2.0),
    ],
)
def test_what_is_not_served_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**MINICPM3_4B, field: value})
