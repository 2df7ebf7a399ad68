"""A GPT-NeoX's files: as transformers and llama.cpp write them, and what the engine makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file
from torch import Tensor

from app.checkpoints.header import WeightError
from app.models.architectures import parse_config
from app.store import Store, resolve
from app.store.errors import StoreError
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.gguf_model import VOCAB_SIZE, check_same, write_checkpoint
from tests.models.scheduled import gives_transformers_tokens
from tests.models.tiny import make_reference
from tests.runner.driver import runner_of
from tests.store.tiny import Array

HEADS = 4
METADATA = {
    "attention.head_count": HEADS,
    "attention.head_count_kv": None,
    "attention.layer_norm_rms_epsilon": None,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 4,
    "use_parallel_residual": True,
}


def test_tokens_are_transformers_however_they_are_scheduled(tmp_path: Path) -> None:
    gives_transformers_tokens(make_reference("gpt_neox"), checkpoint(tmp_path, "gpt_neox"), short=10)


def test_published_checkpoints_hold_masks_and_frequencies(tmp_path: Path) -> None:
    def older(tensors: dict[str, Tensor]) -> None:
        assert "embed_out.weight" in tensors
        for i in range(3):
            prefix = f"gpt_neox.layers.{i}.attention"
            tensors[f"{prefix}.bias"] = torch.ones(8, 8, dtype=torch.uint8).tril()[None, None]
            tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
            tensors[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(2)

    directory = checkpoint(tmp_path, "gpt_neox", weights=older)
    torch.testing.assert_close(served_logprobs(runner_of(directory)), expected_logprobs(directory), rtol=0, atol=1e-4)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "gpt_neox.layers.1.attention.query_key_value.bias"
    directory = checkpoint(tmp_path, "gpt_neox", weights=lambda tensors: tensors.pop(name))
    with pytest.raises(WeightError, match=f"{name}' missing"):
        runner_of(directory)


def by_part(name: str, values: Array) -> Array:
    """All queries, all keys, all values, of what a checkpoint keeps head by head."""
    if "query_key_value" not in name:
        return values
    return values.reshape(HEADS, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def test_a_gguf_file_is_the_checkpoint(tmp_path: Path) -> None:
    reference = make_reference("gpt_neox", vocab_size=VOCAB_SIZE)
    directory = checkpoint(tmp_path / "m", "gpt_neox", vocab_size=VOCAB_SIZE)
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.GPTNEOX, METADATA, change=by_part)
    assert load_file(directory / "model.safetensors")["embed_out.weight"].shape == (VOCAB_SIZE, 64)
    files = check_same(file, reference, directory)
    assert all(layer.parallel for layer in parse_config(files.config).layers)


def test_a_gguf_file_says_whether_its_layers_are_parallel(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "m", "gpt_neox", vocab_size=VOCAB_SIZE)
    store = Store(tmp_path / "home")
    file = write_checkpoint(
        tmp_path / "a.gguf", directory, MODEL_ARCH.GPTNEOX, {**METADATA, "use_parallel_residual": False}
    )
    assert not any(layer.parallel for layer in parse_config(resolve(str(file), store).config).layers)
    file = write_checkpoint(
        tmp_path / "b.gguf", directory, MODEL_ARCH.GPTNEOX, {**METADATA, "use_parallel_residual": 2}
    )
    with pytest.raises(StoreError, match="use_parallel_residual = 2 is of the wrong type"):
        resolve(str(file), store)
