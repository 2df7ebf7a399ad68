"""DeepSeeks with experts out of GGUF files, older and newer ones, and out of int8 checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file
from transformers import PreTrainedModel

from app.checkpoints.gguf_header import read_gguf_header
from app.models.architectures import parse_config
from app.models.config import ExpertsConfig
from app.quality.quantize import write
from app.store.errors import StoreError
from app.store.files import find_weights, read_model
from app.store.gguf_config import config_json
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.deepseek.test_files import METADATA, NEWER, OLDER, converted
from tests.models.expert_files import are_near, stacked
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, write_model
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of
from tests.store.tiny import Array, write_tokenizer

EXPERTS: dict[str, Any] = {
    "leading_dense_block_count": 1,
    "expert_count": 12,
    "expert_used_count": 3,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 36,
    "expert_weights_scale": 1.5,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
}
SECOND = {key: value for key, value in METADATA.items() if "scaling" not in key} | {
    **EXPERTS,
    "expert_weights_norm": False,
    "tokenizer.ggml.pre": "llama-bpe",
}
THIRD = {
    **METADATA,
    **EXPERTS,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "tokenizer.ggml.pre": "llama-bpe",
}


def write_file(
    path: Path, variant: str, metadata: dict[str, Any], *, newer: bool, **overrides: Any
) -> tuple[Path, PreTrainedModel]:
    """A file of a variant, and transformers' model of it."""
    reference = make_reference(variant, vocab_size=VOCAB_SIZE, **overrides)
    tensors: dict[str, Array] = {}
    for name, tensor in stacked(reference).state_dict().items():
        tensors |= converted(name, tensor.numpy(), newer=newer)
    layout = NEWER if newer else OLDER
    return write_model(path, reference, MODEL_ARCH.DEEPSEEK2, metadata | layout, tensors=tensors), reference


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(("variant", "metadata"), [("deepseek_v2_groups", SECOND), ("deepseek_v3_experts", THIRD)])
def test_a_gguf_file_is_the_model_it_was_written_of(
    tmp_path: Path, variant: str, metadata: dict[str, Any], newer: bool
) -> None:
    file, reference = write_file(tmp_path / "m.gguf", variant, metadata, newer=newer)
    is_the_model(file, reference)


def test_files_that_say_nothing_of_groups_have_one(tmp_path: Path) -> None:
    silent = {key: value for key, value in SECOND.items() if "group" not in key and "weights" not in key}
    greedy = {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
    file, reference = write_file(
        tmp_path / "m.gguf", "deepseek_v2_groups", {**silent, "expert_gating_func": 1}, newer=True, **greedy
    )
    is_the_model(file, reference)
    third = {key: value for key, value in THIRD.items() if "group" not in key}
    file, _ = write_file(tmp_path / "third.gguf", "deepseek_v3_experts", third, newer=True)
    mlp = parse_config(config_json(read_gguf_header(file))).layers[-1].mlp
    assert isinstance(mlp, ExpertsConfig)
    assert (mlp.groups, mlp.scoring, mlp.normalise) == (None, "sigmoid", True)


def without_last_layer(reference: PreTrainedModel) -> PreTrainedModel:
    """As if that one drafted tokens."""
    reference.model.layers = reference.model.layers[:-1]
    reference.config.num_hidden_layers -= 1
    return reference


def test_a_layer_of_experts_behind_the_last_is_left_alone(tmp_path: Path) -> None:
    file, reference = write_file(
        tmp_path / "m.gguf", "deepseek_v3_experts", THIRD | {"nextn_predict_layers": 1}, newer=True
    )
    directory = save(reference, tmp_path / "model")
    without_last_layer(reference)
    is_the_model(file, reference)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    expected = expected_logprobs(save(reference, tmp_path / "shorter"))
    torch.testing.assert_close(served_logprobs(runner_of(directory)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_gating_func": 3}, "expert_gating_func = 3"),
        ({"expert_feed_forward_length": None}, "expert_feed_forward_length"),
        ({"expert_used_count": None}, "expert_used_count"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file, _ = write_file(tmp_path / "m.gguf", "deepseek_v3_experts", THIRD | changes, newer=True)
    with pytest.raises(StoreError, match=rf"m\.gguf: .*{message}"):
        config_json(read_gguf_header(file))


def test_an_int8_checkpoint_keeps_the_router_floating(tmp_path: Path) -> None:
    directory = save(make_reference("deepseek_v3_experts", vocab_size=VOCAB_SIZE), tmp_path / "model")
    write_tokenizer(directory / "tokenizer.json")
    out = tmp_path / "int8"
    write(read_model("model", directory, find_weights(directory)), out)
    written = load_file(out / "model.safetensors")
    prefix = "model.layers.1.mlp."
    int8 = {name.removeprefix(prefix) for name, tensor in written.items() if tensor.dtype == torch.int8}
    assert {"experts.11.down_proj.weight", "experts.0.up_proj.weight"} <= int8
    assert written[f"{prefix}gate.weight"].dtype == torch.bfloat16
    original = load_file(directory / "model.safetensors")
    correction = f"{prefix}gate.e_score_correction_bias"
    assert np.array_equal(written[correction].float().numpy(), original[correction].numpy())
    are_near(served_logprobs(runner_of(out)), expected_logprobs(directory))
