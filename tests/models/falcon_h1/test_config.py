"""What ``config.json`` files of published Falcon-H1s say, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import FalconH1Config

from app.cli import main
from app.contract.config import EngineConfig
from app.kernels import dispatch
from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MambaConfig, MlpConfig, Rope
from app.runner.errors import RunnerError
from app.runner.kv_plan import kv_groups
from app.runner.loading import check_shares

H1_0_5B: dict[str, Any] = {
    "architectures": ["FalconH1ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_in_multiplier": 1.0,
    "attention_out_multiplier": 0.9375,
    "attn_layer_indices": None,
    "embedding_multiplier": 5.656854249492381,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "key_multiplier": 0.390625,
    "lm_head_multiplier": 0.0390625,
    "mamba_chunk_size": 128,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_ssm": 1536,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 24,
    "mamba_norm_before_gate": False,
    "mamba_proj_bias": False,
    "mamba_rms_norm": False,
    "mamba_use_mlp": True,
    "max_position_embeddings": 16384,
    "mlp_bias": False,
    "mlp_expansion_factor": 8,
    "mlp_multipliers": [0.8838834764831844, 0.5859375],
    "model_type": "falcon_h1",
    "num_attention_heads": 8,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "num_logits_to_keep": 1,
    "projectors_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000000000.0,
    "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
    "ssm_out_multiplier": 0.23570226039551587,
    "tie_word_embeddings": False,
    "vocab_size": 32784,
}


def test_the_0_5b_of_the_hub() -> None:
    config = parse_config(H1_0_5B)
    assert len(set(config.layers)) == 1
    assert config.num_layers == 36
    assert [mixer.kind for mixer in config.mixers] == ["attention", "mamba"] * 36
    attention, mamba = config.layers[0].mixers
    assert isinstance(attention, AttentionConfig)
    assert attention.rope == Rope(theta=1e11, width=64)
    assert math.isclose(attention.scale, 64**-0.5 * 0.390625)
    assert attention.output_scale == 0.9375
    assert isinstance(mamba, MambaConfig)
    assert (mamba.inner, mamba.channels, mamba.norm) == (1536, 1792, False)
    assert mamba.input_scales == tuple(1.25 * factor for factor in H1_0_5B["ssm_multipliers"])
    assert mamba.output_scale == H1_0_5B["ssm_out_multiplier"]
    [mlp] = {layer.mlp for layer in config.layers}
    assert mlp == MlpConfig(width=2048, gate_scale=0.8838834764831844, output_scale=0.5859375)
    assert (config.embedding_scale, config.logit_scale) == (5.656854249492381, 0.0390625)


def test_a_layer_keeps_pages_and_a_state() -> None:
    groups = kv_groups(parse_config(H1_0_5B), EngineConfig(model_dir="", dtype="bfloat16"))
    assert [(group.kind, group.layers) for group in groups] == [
        ("full", tuple(range(0, 72, 2))),
        ("state", tuple(range(1, 72, 2))),
    ]


def test_what_is_absent_is_what_transformers_takes_it_for() -> None:
    sizes = ("architectures", "hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers")
    given = {name: H1_0_5B[name] for name in (*sizes, "num_attention_heads", "vocab_size")}
    theirs = {**FalconH1Config(**given).to_dict(), "architectures": given["architectures"]}
    assert parse_config(given) == parse_config(theirs)
    assert parse_config({**given, "mamba_d_ssm": None}) == parse_config(
        {**theirs, "mamba_d_ssm": 2048, "mamba_d_head": 16}
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_bias": True, "attention_in_multiplier": 0.5}, "attention_in_multiplier = 0.5 with attention_bias"),
        ({"mamba_proj_bias": True}, "ssm_in_multiplier = 1.25 with mamba_proj_bias"),
        ({"mamba_rms_norm": True, "mamba_norm_before_gate": True}, "mamba_norm_before_gate"),
        ({"mamba_d_head": 32}, "mamba_d_head = 32"),
        ({"ssm_multipliers": [1.0] * 4}, "ssm_multipliers"),
        ({"mlp_multipliers": [1.0, 0.0]}, "mlp_multipliers"),
        ({"residual_multiplier": 0.5}, "residual_multiplier"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_experts": 4}, "num_experts"),
        ({"model_type": "falcon_mamba"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**H1_0_5B, **fields})


def test_ranks_do_not_share_it() -> None:
    with pytest.raises(RunnerError, match="ranks cannot share the layers of FalconH1ForCausalLM"):
        check_shares(parse_config(H1_0_5B), 2)


def test_memory_is_planned_from_the_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(H1_0_5B))
    result = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu-memory", "80GiB", "--json"])
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    pages = 36 * 2 * 2 * 64 * 2  # bytes a token of keys and values in bf16
    state = 36 * (24 * 128 * 64 * 4 + 3 * 1792 * 2)
    assert row["kv_cache_tokens"] > 1 << 20
    assert row["kv_cache"] - row["kv_cache_tokens"] * pages > 64 * state, "states take the rest"
