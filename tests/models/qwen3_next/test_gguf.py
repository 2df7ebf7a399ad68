"""A dense Qwen3.5 out of a GGUF file, its tensors as llama.cpp's converter writes them, is that of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file

from app.checkpoints.gguf_header import read_gguf_header
from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights, load_weights
from app.models.architectures import find, parse_config
from app.quant.destination import Extent
from app.quant.placement import Placement
from app.store.errors import StoreError
from app.store.gguf_config import config_json
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS, close
from tests.models.tiny import CONTEXT, CPU, PagedExecution, load, make_reference, save
from tests.store.tiny import Array, write_gguf

LAYERS, KEY_HEADS, VALUE_HEADS, K_DIM, V_DIM = 4, 2, 4, 16, 32
METADATA = {
    "block_count": LAYERS + 1,
    "nextn_predict_layers": 1,
    "context_length": CONTEXT,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10_000.0,
    "rope.dimension_count": 8,
    "rope.dimension_sections": [11, 11, 10, 0],
    "ssm.conv_kernel": 3,
    "ssm.state_size": K_DIM,
    "ssm.group_count": KEY_HEADS,
    "ssm.time_step_rank": VALUE_HEADS,
    "ssm.inner_size": VALUE_HEADS * V_DIM,
    "full_attention_interval": 2,
}


def in_turns(values: Array, axis: int, start: int = 0) -> Array:
    """Value heads in the order of ggml's broadcast: the first of each key head, then the second of each."""
    head = (values.shape[axis] - start) // VALUE_HEADS
    order = [
        start + (key * (VALUE_HEADS // KEY_HEADS) + turn) * head + i
        for turn in range(VALUE_HEADS // KEY_HEADS)
        for key in range(KEY_HEADS)
        for i in range(head)
    ]
    return np.take(values, [*range(start), *order], axis)


def converted(name: str, values: Array) -> tuple[str, Array]:
    """GGUF name and values of a checkpoint's tensor."""
    keys = 2 * KEY_HEADS * K_DIM
    match name.rsplit(".", 2)[-2:]:
        case [_, "A_log"]:
            values = in_turns(-np.exp(values), 0)
        case [_, "dt_bias"]:
            name, values = name.replace("dt_bias", "dt_proj.bias"), in_turns(values, 0)
        case ["conv1d", _]:
            values = in_turns(values.squeeze(1), 0, keys)
        case ["in_proj_qkv", _]:
            values = in_turns(values, 0, keys)
        case ["in_proj_z" | "in_proj_a" | "in_proj_b", _]:
            values = in_turns(values, 0)
        case ["out_proj", _]:
            values = in_turns(values, 1)
        case [norm, _] if norm.endswith("norm") and "linear_attn" not in name:
            values = values + 1
    names = gguf.get_tensor_name_map(MODEL_ARCH.QWEN35, LAYERS)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None
    return found, np.ascontiguousarray(values)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_reference("qwen3_5"), tmp_path_factory.mktemp("qwen3_5"))


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = dict(
        converted(name, tensor.numpy()) for name, tensor in load_file(checkpoint / "model.safetensors").items()
    )
    drafting = {f"blk.{LAYERS}.nextn.eh_proj.weight": np.ones((64, 128), np.float32)}
    drafting[f"blk.{LAYERS}.attn_q.weight"] = np.ones((384, 64), np.float32)
    metadata = {f"qwen35.{key}": value for key, value in METADATA.items()} | {"tokenizer.ggml.pre": "qwen35"}
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(path, {}, arch="qwen35", extra=metadata, tensors=tensors | drafting)


def test_the_model_is_that_of_its_checkpoint(checkpoint: Path, file: Path) -> None:
    expected, expected_config = load(checkpoint)
    config = parse_config(config_json(read_gguf_header(file)))
    assert config == expected_config
    model = find(config.architecture).build(config, max_positions=CONTEXT, placement=Placement(torch.float32, CPU))
    load_weights(
        model.destinations(), [file], ignore=model.ignores, twins=model.twins(), progress=lambda _done, _total: None
    )
    close(
        PagedExecution(model, config).sequence(TOKENS, [60, 40], SHUFFLED_BLOCKS),
        PagedExecution(expected, expected_config).sequence(TOKENS, [60, 40], SHUFFLED_BLOCKS),
    )


def test_an_extent_is_of_the_checkpoints_tensor(checkpoint: Path, file: Path) -> None:
    stored = {tensor.name: tensor for tensor in iter_weights([file])}
    for name, extent in (("in_proj_z", Extent(0, 32, 64)), ("out_proj", Extent(1, 64, 128))):
        tensor = stored[f"model.layers.0.linear_attn.{name}.weight"]
        expected = extent.of(load_file(checkpoint / "model.safetensors")[tensor.name])
        assert torch.equal(tensor.read(extent), expected)


def test_heads_that_do_not_add_up_are_an_error(file: Path, tmp_path: Path) -> None:
    metadata = {f"qwen35.{key}": value for key, value in METADATA.items()}
    odd = write_gguf(tmp_path / "odd.gguf", {}, arch="qwen35", extra={**metadata, "qwen35.ssm.inner_size": 130})
    with pytest.raises(StoreError, match=r"odd\.gguf: 4 value heads in ssm\.inner_size = 130"):
        config_json(read_gguf_header(odd))
    tensors = {"blk.0.attn_gate.weight": np.ones((128, 64), np.float32)}
    extra = {**metadata, "qwen35.ssm.group_count": 3}
    [stored] = iter_weights([write_gguf(tmp_path / "m.gguf", {}, arch="qwen35", extra=extra, tensors=tensors)])
    with pytest.raises(WeightError, match=r"'blk\.0\.attn_gate\.weight' is not 4 value heads of 3 key heads"):
        stored.read()
