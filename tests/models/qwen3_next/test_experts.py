"""Qwen3-Next and Qwen3.5 with experts: parity, configs, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Qwen3_5MoeTextConfig, Qwen3NextConfig

from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig, MlpConfig
from app.runner.loading import read_model_config
from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8, flat_gate, save_stacks, stacked
from tests.models.gguf_model import PROMPT, VOCAB_SIZE, resolved
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS, Loaded, ParityTests, close
from tests.models.qwen3_next.test_config import QWEN3_5, QWEN3_NEXT
from tests.models.qwen3_next.test_gguf import in_turns
from tests.models.scheduled import NUM_TOKENS, gives_transformers_tokens, greedy
from tests.models.served import ServedTests
from tests.models.tiny import DELTA, PagedExecution, load, make_reference, reference_logits, save
from tests.runner.driver import Request, run, runner_of
from tests.store.tiny import Array, write_gguf

EXPERTS: dict[str, Any] = {
    **DELTA,
    "num_hidden_layers": 2,
    "num_experts": 9,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 36,
    "shared_expert_intermediate_size": 52,
}
MIXED = {**EXPERTS, "decoder_sparse_step": 2, "norm_topk_prob": False, "attention_bias": True}
CONFIGS = {
    "next": (Qwen3NextConfig, EXPERTS),
    "mixed": (Qwen3NextConfig, MIXED),
    "3.5": (Qwen3_5MoeTextConfig, EXPERTS),
}


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(CONFIGS[request.param], tmp_path_factory.mktemp("experts"))


class TestExperts(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8

    def test_tokens_are_transformers_however_they_are_scheduled(self, loaded: Loaded) -> None:
        """As of all families, but for two groups of blocks."""
        gives_transformers_tokens(loaded.reference, loaded.directory, short=(9, 12))


QWEN3_5_MOE = {
    **QWEN3_5,
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "text_config": {
        **{key: value for key, value in QWEN3_5["text_config"].items() if key != "intermediate_size"},
        "hidden_size": 2048,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 512,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
    },
}


def test_the_published_shapes() -> None:
    shared: dict[str, Any] = {"width": 512, "shared_width": 512, "shared_gate": True}
    config = parse_config(QWEN3_NEXT)
    assert {layer.mlp for layer in config.layers} == {ExpertsConfig(count=512, chosen=10, **shared)}
    silent = {key: value for key, value in QWEN3_NEXT.items() if not key.startswith("num_experts")}
    assert parse_config(silent) == config
    assert parse_config(Qwen3NextConfig(**QWEN3_NEXT).to_dict()) == config
    config = parse_config(QWEN3_5_MOE)
    assert {layer.mlp for layer in config.layers} == {ExpertsConfig(count=256, chosen=8, **shared)}
    assert [layer.mixer.kind for layer in config.layers] == ["delta", "delta", "delta", "attention"] * 10
    silent = {key: value for key, value in QWEN3_5_MOE["text_config"].items() if "expert" not in key}
    assert parse_config({**QWEN3_5_MOE, "text_config": silent}) == config


def test_layers_of_qwen3_next_may_be_dense() -> None:
    given = {**QWEN3_NEXT, "decoder_sparse_step": 2, "mlp_only_layers": [1], "num_hidden_layers": 4}
    kinds = [layer.mlp.kind for layer in parse_config(given).layers]
    assert kinds == ["mlp", "mlp", "mlp", "experts"]
    assert parse_config(given).layers[0].mlp == MlpConfig(width=5120)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_local_experts": 8}, "num_experts = 512 and num_local_experts = 8 differ"),
        ({"num_experts_per_tok": 513}, "num_experts_per_tok = 513"),
        ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size"),
        ({"model_type": "qwen3_5_moe"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**QWEN3_NEXT, **fields})
    text = {**QWEN3_5_MOE["text_config"], "num_experts": 0}
    with pytest.raises(ConfigError, match="num_experts_per_tok = 8 is more than num_experts = 0"):
        parse_config({**QWEN3_5_MOE, "text_config": text})


def test_tensors_of_all_experts_are_those_of_each(tmp_path: Path) -> None:
    reference = make_reference(CONFIGS["3.5"])
    stacks = save_stacks(reference, tmp_path / "stacks")
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(stacks / "model.safetensors")
    logits = PagedExecution(*load(stacks)).sequence(TOKENS, [100], SHUFFLED_BLOCKS)
    close(logits, reference_logits(reference, TOKENS))


def test_the_text_part_of_a_model_that_sees_images(tmp_path: Path) -> None:
    reference = make_reference(CONFIGS["3.5"])
    text = save(reference, tmp_path / "text")
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(text / "model.safetensors").items()
    }
    both = tmp_path / "both"
    both.mkdir()
    save_file({**tensors, "model.visual.blocks.0.norm1.weight": torch.ones(2)}, both / "model.safetensors")
    config = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": json.loads((text / "config.json").read_text()),
        "tie_word_embeddings": False,
    }
    (both / "config.json").write_text(json.dumps(config))
    assert read_model_config(both, [both / "model.safetensors"]).architecture == config["architectures"][0]
    logits = PagedExecution(*load(both)).sequence(TOKENS, [100], SHUFFLED_BLOCKS)
    close(logits, reference_logits(reference, TOKENS))


METADATA = {
    "block_count": 2,
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": None,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10_000.0,
    "rope.dimension_count": 8,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
    "full_attention_interval": 2,
    "expert_count": 9,
    "expert_used_count": 3,
    "expert_feed_forward_length": 36,
    "expert_shared_feed_forward_length": 52,
}


def by_key_heads(values: Array, sizes: list[int]) -> list[Array]:
    """Parts of rows that go by key heads, each part's rows together."""
    groups = values.reshape(2, -1, values.shape[1])
    return [part.reshape(-1, values.shape[1]) for part in np.split(groups, np.cumsum(sizes)[:-1], axis=1)]


def converted(name: str, values: Array, *, turns: bool) -> dict[str, Array]:
    """Tensors of a file, under checkpoint names, of one of a checkpoint.

    Args:
        turns: value heads are put in turns, as those of Qwen3.5 are.
    """
    base, part, *_ = name.rsplit(".", 2) if not name.endswith(("A_log", "dt_bias")) else (*name.rsplit(".", 1), "")
    order = in_turns if turns else lambda values, _axis, _start=0: values
    match part:
        case "in_proj_qkvz":
            q, k, v, z = by_key_heads(values, [16, 16, 64, 64])
            return {f"{base}.in_proj_qkv.weight": np.concatenate((q, k, v)), f"{base}.in_proj_z.weight": z}
        case "A_log":
            return {name: order(-np.exp(values), 0)}
        case "dt_bias":
            return {f"{base}.dt_proj.bias": order(values, 0)}
        case "conv1d":
            return {name: order(values.squeeze(1), 0, 64)}
        case "in_proj_qkv":
            return {name: order(values, 0, 64)}
        case "in_proj_z" | "in_proj_a" | "in_proj_b":
            return {name: order(values, 0)}
        case "out_proj":
            return {name: order(values, 1)}
    norm = part.endswith("norm") and "linear_attn" not in name
    return {name: values + 1 if norm else flat_gate(name, values)}


def write(path: Path, reference: PreTrainedModel, arch: MODEL_ARCH, *, merged: bool) -> Path:
    names, tensors = gguf.get_tensor_name_map(arch, 2), dict[str, Array]()
    source = reference if merged else stacked(reference)
    for name, tensor in source.state_dict().items():
        for own, values in converted(name, tensor.numpy(), turns=arch is MODEL_ARCH.QWEN35MOE).items():
            found = names.get_name(own, try_suffixes=(".weight", ".bias"))
            assert found is not None, own
            if own.endswith(("experts.gate_up_proj", "experts.down_proj")):
                found += ".weight"
            tensors[found] = np.ascontiguousarray(values)
    extra = {f"{gguf.MODEL_ARCH_NAMES[arch]}.{key}": value for key, value in METADATA.items()}
    pre = {"tokenizer.ggml.pre": "qwen35" if arch is MODEL_ARCH.QWEN35MOE else "qwen2"}
    return write_gguf(path, {}, arch=gguf.MODEL_ARCH_NAMES[arch], extra={**extra, **pre}, tensors=tensors)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("arch", [MODEL_ARCH.QWEN3NEXT, MODEL_ARCH.QWEN35MOE])
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, arch: MODEL_ARCH, merged: bool) -> None:
    config = Qwen3NextConfig if arch is MODEL_ARCH.QWEN3NEXT else Qwen3_5MoeTextConfig
    reference = make_reference((config, EXPERTS), vocab_size=VOCAB_SIZE)
    files = resolved(write(tmp_path / "m.gguf", reference, arch, merged=merged))
    expected = parse_config(reference.config.to_dict() | {"architectures": [type(reference).__name__]})
    assert parse_config(files.config).layers == expected.layers
    request = Request(0, PROMPT, list(range(8)))
    run(runner_of(files.directory, weights=tuple(map(str, files.weights))), [request], NUM_TOKENS)
    assert request.outputs == greedy(reference, PROMPT, draft=request.outputs)
