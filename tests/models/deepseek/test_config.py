"""What ``config.json`` of published checkpoints says, what memory it means, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import DeepseekV2Config, DeepseekV3Config

from app.cli import main
from app.contract.config import EngineConfig
from app.kernels import dispatch
from app.layers.rope_scaling import YarnScaling
from app.models.architectures import parse_config
from app.models.config import ConfigError, LatentConfig
from app.runner.errors import RunnerError
from app.runner.kv_plan import kv_groups

V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 27,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
V3 = {
    **V2_LITE,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "q_lora_rank": 1536,
    "rope_scaling": {**V2_LITE["rope_scaling"], "mscale": 1.0, "mscale_all_dim": 1.0},
}


def latent_of(config: dict[str, Any]) -> LatentConfig:
    (latent,) = set(parse_config(config).latents)
    return latent


def test_the_published_shape() -> None:
    latent = latent_of(V2_LITE)
    assert (latent.num_heads, latent.q_rank, latent.kv_rank, latent.width) == (16, None, 512, 576)
    assert (latent.nope_dim, latent.rope_dim, latent.v_dim) == (128, 64, 128)
    assert latent.interleaved
    assert latent.scale == pytest.approx(192**-0.5 * (0.1 * 0.707 * math.log(40) + 1) ** 2)
    assert isinstance(latent.rope.scaling, YarnScaling)
    assert latent.rope.width == 64
    assert parse_config(V2_LITE).context_length == 163840
    assert latent_of(V3).q_rank == 1536
    assert latent_of(V3).scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def test_scores_have_no_temperature_without_yarn() -> None:
    assert latent_of({**V2_LITE, "rope_scaling": None}).scale == 192**-0.5
    plain = {"rope_type": "default", "mscale_all_dim": 1.0}
    assert latent_of({**V2_LITE, "rope_scaling": plain}).scale == 192**-0.5


@pytest.mark.parametrize("config", [V2_LITE, V3])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_key_value_heads", 4),
        ("qk_rope_head_dim", 63),
        ("kv_lora_rank", 0),
        ("v_head_dim", None),
        ("hidden_act", "gelu"),
        ("model_type", "llama"),
        ("sliding_window", 4096),
        ("attn_logit_softcapping", 30.0),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "attn_factor": 0.5}),
    ],
)
def test_what_is_not_served_is_refused_by_name(config: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**config, field: value})
    assert field in str(error.value) or any(name in str(error.value) for name in value)
    assert "\n" not in str(error.value)


def test_pairs_are_halves_in_the_third_generation_alone() -> None:
    assert not latent_of({**V3, "rope_interleave": False}).interleaved
    with pytest.raises(ConfigError, match="rope_interleave"):
        parse_config({**V2_LITE, "rope_interleave": False})


@pytest.mark.parametrize("third", [False, True])
def test_absent_fields_are_what_transformers_takes_them_for(third: bool) -> None:
    given = {
        "architectures": ["DeepseekV3ForCausalLM" if third else "DeepseekV2ForCausalLM"],
        "first_k_dense_replace": 30,
        "hidden_size": 4096,
        "intermediate_size": 64,
        "max_position_embeddings": 8192,
        "num_attention_heads": 128,
        "num_hidden_layers": 30,
        "vocab_size": 128,
    }
    theirs, ours = (DeepseekV3Config if third else DeepseekV2Config)(**given), latent_of(given)
    assert (ours.q_rank, ours.kv_rank) == (theirs.q_lora_rank, theirs.kv_lora_rank)
    assert (ours.nope_dim, ours.rope_dim) == (theirs.qk_nope_head_dim, theirs.qk_rope_head_dim)
    assert (ours.v_dim, ours.num_heads) == (theirs.v_head_dim, theirs.num_key_value_heads)
    assert theirs.rope_parameters is not None
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert parse_config(given).norm_eps == theirs.rms_norm_eps
    assert parse_config(given).tie_word_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize(("dtype", "itemsize"), [("bfloat16", 2), ("float32", 4)])
def test_a_token_takes_its_latent_in_every_layer(dtype: str, itemsize: int) -> None:
    config = EngineConfig(model_dir="none", dtype=dtype)
    (group,) = kv_groups(parse_config(V2_LITE), config)
    assert (group.kind, group.num_kv_heads, group.head_dim, group.dtype) == ("full", 1, 576, dtype)
    assert group.bytes_per_block == 27 * 16 * (512 + 64) * itemsize


def test_latents_are_not_int8() -> None:
    with pytest.raises(RunnerError, match="kv_cache_dtype = 'int8' is not supported of latents"):
        kv_groups(parse_config(V2_LITE), EngineConfig(model_dir="none", dtype="bfloat16", kv_cache_dtype="int8"))


def test_memory_is_planned_from_the_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(V2_LITE))
    result = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu-memory", "80GiB", "--json"])
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    token = 27 * (512 + 64) * 2  # bytes in bf16
    assert row["kv_cache"] == row["kv_cache_tokens"] * token
    assert row["max_model_len"] == 163840
    result = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu-memory", "6GiB"])
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
    assert result.exit_code == 1
    assert "kv_cache_dtype" not in result.stderr, "which would not be served"
