"""Configs of Qwen2-MoE, its memory plan, and its files: int8 ones, stacks, llama.cpp's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from gguf import MODEL_ARCH
from safetensors.torch import load_file
from transformers import Qwen2MoeConfig

from app.cli import main
from app.kernels import dispatch
from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig, MlpConfig
from app.quality.quantize import write
from app.runner.errors import RunnerError
from app.runner.loading import check_shares
from app.store.errors import StoreError
from app.store.files import find_weights, read_model
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.expert_files import are_near, flat_gate, save_stacks, stacked
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, resolved, write_model
from tests.models.qwen2moe.test_parity import SHAPE
from tests.models.test_config import windows_of
from tests.models.tiny import make_reference, save
from tests.runner.driver import engine_config, runner_of
from tests.runner.ranks import run_on_ranks
from tests.runner.test_parallel import answer
from tests.store.tiny import write_tokenizer

QWEN1_5_MOE_A2_7B: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
EXPERTS = ExpertsConfig(count=60, chosen=4, width=1408, normalise=False, shared_width=5632, shared_gate=True)
METADATA = {
    "expert_count": 9,
    "expert_used_count": 3,
    "expert_feed_forward_length": 36,
    "expert_shared_feed_forward_length": 100,
    "tokenizer.ggml.pre": "qwen2",
}


def test_the_a2_7b_of_the_hub() -> None:
    config = parse_config(QWEN1_5_MOE_A2_7B)
    assert {layer.mlp for layer in config.layers} == {EXPERTS}
    assert config.attentions[0].qkv_bias
    assert not config.attentions[0].qk_norm
    assert set(windows_of(config)) == {None}
    silent = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
    assert parse_config({key: value for key, value in QWEN1_5_MOE_A2_7B.items() if key not in silent}) == config


def test_some_layers_are_dense_and_some_slide() -> None:
    given = {**QWEN1_5_MOE_A2_7B, "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    config = parse_config(given)
    dense = MlpConfig(width=5632)
    assert [layer.mlp for layer in config.layers] == [dense, EXPERTS, dense, dense, dense, EXPERTS]
    sliding = {**given, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}
    assert windows_of(parse_config(sliding)) == (64, None, 64, None, None, None)
    theirs = Qwen2MoeConfig(**sliding).layer_types
    assert [kind == "sliding_attention" for kind in theirs] == [bool(w) for w in windows_of(parse_config(sliding))]
    assert windows_of(parse_config({**sliding, "layer_types": ["sliding_attention"] * 6})) == (64,) * 6
    assert {layer.mlp.kind for layer in parse_config({**given, "num_experts": 0}).layers} == {"mlp"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_local_experts": 8}, "num_experts = 60 and num_local_experts = 8 differ"),
        ({"num_experts_per_tok": 61}, "num_experts_per_tok = 61"),
        ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
        ({"n_group": 4, "n_routed_experts": 8}, "n_routed_experts"),
        ({"model_type": "qwen3_moe"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**QWEN1_5_MOE_A2_7B, **fields})


def test_the_memory_plan_counts_shared_experts(tmp_path: Path) -> None:
    weights = {}
    for width in (5632, 11264):
        config = {**QWEN1_5_MOE_A2_7B, "shared_expert_intermediate_size": width}
        (tmp_path / "config.json").write_text(json.dumps(config))
        result = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu-memory", "80GiB", "--json"])
        dispatch.configure(dispatch.Mode.AUTO, threads=1)
        assert result.exit_code == 0, result.stderr
        weights[width] = json.loads(result.stdout)["weights"]
    assert weights[11264] - weights[5632] == 24 * 3 * 5632 * 2048 * 2


def test_tensors_of_all_experts_are_those_of_each(tmp_path: Path) -> None:
    reference = make_reference((Qwen2MoeConfig, SHAPE))
    published, stacks = save(reference, tmp_path / "each"), save_stacks(reference, tmp_path / "stacks")
    assert "model.layers.0.mlp.experts.8.up_proj.weight" in load_file(published / "model.safetensors")
    expected = served_logprobs(runner_of(published))
    assert torch.equal(served_logprobs(runner_of(stacks)), expected)
    torch.testing.assert_close(expected, expected_logprobs(published), rtol=0, atol=1e-4)


def test_an_int8_checkpoint_has_int8_experts_and_floating_gates(tmp_path: Path) -> None:
    source = save(make_reference((Qwen2MoeConfig, SHAPE), vocab_size=VOCAB_SIZE), tmp_path / "model")
    write_tokenizer(source / "tokenizer.json")
    write(read_model("model", source, find_weights(source)), tmp_path / "int8")
    written = load_file(tmp_path / "int8" / "model.safetensors")
    mlp = "model.layers.2.mlp"
    assert written[f"{mlp}.experts.8.down_proj.weight"].dtype == torch.int8
    assert written[f"{mlp}.shared_expert.up_proj.weight"].dtype == torch.int8
    assert written[f"{mlp}.shared_expert_gate.weight"].dtype == torch.bfloat16
    are_near(served_logprobs(runner_of(tmp_path / "int8")), expected_logprobs(source))


@pytest.mark.parametrize("normalised", [None, True])
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, normalised: bool | None) -> None:
    reference = make_reference((Qwen2MoeConfig, SHAPE), vocab_size=VOCAB_SIZE, norm_topk_prob=bool(normalised))
    metadata = {**METADATA, "expert_weights_norm": normalised}
    file = write_model(tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.QWEN2MOE, metadata, stored=flat_gate)
    is_the_model(file, reference)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_shared_feed_forward_length": None}, "expert_shared_feed_forward_length"),
        ({"expert_gating_func": 2}, "expert_gating_func = 2"),
        ({"expert_group_count": 8}, "expert_group_count = 8"),
        ({"expert_weights_scale": 2.5}, "expert_weights_scale"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    reference = make_reference((Qwen2MoeConfig, SHAPE), vocab_size=VOCAB_SIZE, num_hidden_layers=1)
    file = write_model(
        tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.QWEN2MOE, {**METADATA, **metadata}, stored=flat_gate
    )
    with pytest.raises(StoreError, match=message):
        resolved(file)


def test_ranks_sample_the_tokens_of_one(tmp_path: Path) -> None:
    directory = save(make_reference((Qwen2MoeConfig, SHAPE)), tmp_path)
    whole = answer(runner_of(directory))
    shares = run_on_ranks(engine_config(directory, tensor_parallel_size=2), tmp_path / "meeting", answer)
    for share in shares:
        assert share.tokens == whole.tokens
        assert share.info.num_parameters == whole.info.num_parameters
        assert share.info.weight_bytes < 0.6 * whole.info.weight_bytes


def test_a_width_that_ranks_cannot_share_is_named() -> None:
    config = parse_config({**QWEN1_5_MOE_A2_7B, "shared_expert_intermediate_size": 5633})
    with pytest.raises(RunnerError, match=r"shared_expert_intermediate_size = 5633; use one of 1$"):
        check_shares(config, 2)
