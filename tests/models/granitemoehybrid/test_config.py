"""What ``config.json`` files of published Granite 4s say, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import GraniteMoeHybridConfig

from app.cli import main
from app.kernels import dispatch
from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, ExpertsConfig, MambaConfig, MlpConfig, Rope
from app.quality.quantize import write
from app.runner.errors import RunnerError
from app.runner.loading import check_shares
from app.store.files import find_weights, read_model
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.expert_files import are_near, save_stacks
from tests.models.gguf_model import VOCAB_SIZE
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of
from tests.store.tiny import write_tokenizer

H_TINY: dict[str, Any] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.0078125,
    "embedding_multiplier": 12,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "init_method": "mup",
    "initializer_range": 0.1,
    "intermediate_size": 512,
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    "logits_scaling": 6,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 48,
    "mamba_proj_bias": False,
    "max_position_embeddings": 131072,
    "model_type": "granitemoehybrid",
    "normalization_function": "rmsnorm",
    "num_attention_heads": 12,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 40,
    "num_key_value_heads": 4,
    "num_local_experts": 64,
    "output_router_logits": False,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000,
    "router_aux_loss_coef": 0.0,
    "shared_intermediate_size": 1024,
    "tie_word_embeddings": True,
    "vocab_size": 100352,
}
MICRO = {
    **H_TINY,
    "layer_types": ["attention"] * 40,
    "num_experts_per_tok": 0,
    "num_local_experts": 0,
    "position_embedding_type": "rope",
    "rope_theta": 1e7,
}
"""Without experts nor recurrence."""


def test_the_h_tiny_of_the_hub() -> None:
    config = parse_config(H_TINY)
    mamba, attention = config.layers[0].mixer, config.layers[5].mixer
    assert mamba == MambaConfig(num_heads=48, head_dim=64, num_groups=1, state_dim=128, conv_width=4, output_scale=0.22)
    assert isinstance(attention, AttentionConfig)
    assert (attention.rope, attention.scale, attention.head_dim, attention.output_scale) == (None, 1 / 128, 128, 0.22)
    assert [layer.mixer.kind for layer in config.layers] == (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4
    experts = ExpertsConfig(
        count=64,
        chosen=6,
        width=512,
        scoring="softmax chosen",
        normalise=False,
        shared_width=1024,
        output_scale=0.22,
    )
    assert {layer.mlp for layer in config.layers} == {experts}
    assert (config.embedding_scale, config.logit_scale, config.context_length) == (12, 1 / 6, 131072)


def test_one_without_recurrence_and_experts() -> None:
    config = parse_config(MICRO)
    assert {layer.mlp for layer in config.layers} == {MlpConfig(width=1024, output_scale=0.22)}
    assert {attention.rope for attention in config.attentions} == {Rope(theta=1e7, width=128)}
    assert len(config.attentions) == 40


def test_what_is_absent_is_what_transformers_takes_it_for() -> None:
    sizes = ("architectures", "hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers")
    given = {name: H_TINY[name] for name in (*sizes, "num_attention_heads", "vocab_size")}
    ours = parse_config({**given, "hidden_size": 4096, "num_attention_heads": 32})
    theirs = GraniteMoeHybridConfig(**given | {"hidden_size": 4096, "num_attention_heads": 32}).to_dict()
    assert ours == parse_config({**theirs, "architectures": given["architectures"]})
    assert {layer.mixer.kind for layer in ours.layers} == {"mamba"}


@pytest.mark.parametrize("value", [None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}]])
def test_steps_without_a_limit(value: Any) -> None:
    assert parse_config({**H_TINY, "time_step_limit": value}) == parse_config(H_TINY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": ["mamba"] * 39}, "layer_types has 39 entries"),
        ({"layer_types": ["sliding_attention"] * 40}, "layer_types = 'sliding_attention'"),
        ({"mamba_n_heads": 47}, "mamba_n_heads = 47"),
        ({"mamba_n_groups": 5}, "mamba_n_groups = 5 does not divide"),
        ({"mamba_d_conv": 1}, "mamba_d_conv"),
        ({"mamba_d_head": "full"}, "mamba_d_head"),
        ({"time_step_limit": [1.0, 0.5]}, "time_step_limit"),
        ({"time_step_limit": [0.0]}, "time_step_limit"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"num_experts_per_tok": 65}, "num_experts_per_tok = 65"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0 of num_local_experts = 64"),
        ({"shared_intermediate_size": 0}, "shared_intermediate_size"),
        ({"residual_multiplier": 0}, "residual_multiplier"),
        ({"key_multiplier": 0.5}, "key_multiplier"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "granitemoe"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**H_TINY, **fields})


def test_ranks_do_not_share_recurrent_layers() -> None:
    with pytest.raises(RunnerError, match="ranks cannot share the layers of GraniteMoeHybridForCausalLM"):
        check_shares(parse_config(H_TINY), 2)
    check_shares(parse_config(MICRO), 2)


def test_memory_is_planned_from_the_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(H_TINY))
    result = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu-memory", "80GiB", "--json"])
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    pages = 4 * 2 * 4 * 128 * 2  # bytes a token of keys and values in bf16
    state = 36 * (48 * 128 * 64 * 4 + 3 * (3072 + 2 * 128) * 2)
    assert row["kv_cache_tokens"] > 1 << 20
    assert row["kv_cache"] - row["kv_cache_tokens"] * pages > 64 * state, "states take the rest"


def test_tensors_as_they_are_in_memory_are_those_of_files(tmp_path: Path) -> None:
    reference = make_reference("granitemoehybrid")
    published, stacks = save(reference, tmp_path / "each"), save_stacks(reference, tmp_path / "stacks")
    assert "model.layers.0.block_sparse_moe.input_linear.weight" in load_file(published / "model.safetensors")
    assert torch.equal(served_logprobs(runner_of(stacks)), served_logprobs(runner_of(published)))


def test_an_int8_checkpoint_is_near(tmp_path: Path) -> None:
    source = save(make_reference("granitemoehybrid_groups", vocab_size=VOCAB_SIZE), tmp_path / "model")
    write_tokenizer(source / "tokenizer.json")
    write(read_model("model", source, find_weights(source)), tmp_path / "int8")
    written = load_file(tmp_path / "int8" / "model.safetensors")
    kinds = {name.removeprefix("model.layers.0."): tensor.dtype for name, tensor in written.items()}
    assert kinds["mamba.in_proj.weight"] == kinds["mamba.out_proj.weight"] == torch.int8
    assert kinds["mamba.conv1d.weight"].is_floating_point
    are_near(served_logprobs(runner_of(tmp_path / "int8")), expected_logprobs(source))


def test_layer_types_as_published_files_have_them(tmp_path: Path) -> None:
    types = ["mamba", "attention", "mamba"]
    directory = checkpoint(tmp_path, "granitemoehybrid_groups", config={"layer_types": types})
    served = served_logprobs(runner_of(directory))
    torch.testing.assert_close(served, expected_logprobs(directory), rtol=0, atol=1e-4)
