"""A DeepSeek out of GGUF files, older and newer ones, and out of an int8 checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.gguf_header import read_gguf_header
from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from app.models.architectures import parse_config
from app.quality.quantize import write
from app.quant.destination import Extent
from app.runner.start import make_runner
from app.store import Store, resolve
from app.store.errors import StoreError
from app.store.files import find_weights, read_model
from app.store.gguf_config import config_json
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.runner.driver import discard, engine_config, runner_of
from tests.store.tiny import VOCAB, Array, write_gguf, write_tokenizer

HEADS, NOPE, V_DIM, RANK, ROTARY = 4, 12, 10, 32, 8
ARCH = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.DEEPSEEK2]
METADATA: dict[str, Any] = {
    "block_count": 3,
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": HEADS,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.q_lora_rank": 24,
    "attention.kv_lora_rank": RANK,
    "rope.dimension_count": ROTARY,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_log_multiplier": 0.1,
}
OLDER = {"attention.key_length": NOPE + ROTARY, "attention.value_length": V_DIM, "attention.head_count_kv": HEADS}
NEWER = {
    "attention.key_length": RANK + ROTARY,
    "attention.value_length": RANK,
    "attention.key_length_mla": NOPE + ROTARY,
    "attention.value_length_mla": V_DIM,
    "attention.head_count_kv": 1,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"), "deepseek_v3", vocab_size=len(VOCAB))


def converted(name: str, values: Array, *, newer: bool) -> dict[str, Array]:
    """A checkpoint's tensor as llama.cpp's converter writes it."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, 3)

    def called(name: str) -> str:
        found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None
        return found

    if not newer or "kv_b_proj" not in name:
        return {called(name): values}
    keys, v = np.split(values.reshape(HEADS, NOPE + V_DIM, RANK), [NOPE], axis=1)
    apart = {"k_b_proj": keys.swapaxes(1, 2), "v_b_proj": v}
    return {called(name.replace("kv_b_proj", part)): np.ascontiguousarray(apart[part]) for part in apart}


def write_file(directory: Path, path: Path, *, newer: bool, **changes: Any) -> Path:
    tensors: dict[str, Array] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        tensors |= converted(name, tensor.numpy(), newer=newer)
    metadata = METADATA | (NEWER if newer else OLDER) | changes
    extra = {f"{ARCH}.{key}": value for key, value in metadata.items()} | {"tokenizer.ggml.pre": "qwen2"}
    # A sigmoid scores experts: of the third generation.
    extra[f"{ARCH}.expert_gating_func"] = 2
    return write_gguf(path, {}, arch=ARCH, extra=extra, tensors=tensors)


@pytest.mark.parametrize("newer", [False, True])
def test_a_gguf_file_is_the_same_model(directory: Path, tmp_path: Path, newer: bool) -> None:
    file = write_file(directory, tmp_path / "m.gguf", newer=newer)
    assert ("blk.2.attn_k_b.weight" in read_gguf_header(file).tensors) == newer
    config = parse_config(config_json(read_gguf_header(file)))
    assert config == parse_config(json.loads((directory / "config.json").read_text()))
    files = resolve(str(file), Store(tmp_path / "home"))
    engine = engine_config(files.directory, weights=tuple(map(str, files.weights)))
    served = served_logprobs(make_runner(engine, discard))
    torch.testing.assert_close(served, expected_logprobs(directory), rtol=0, atol=1e-4)


def test_an_extent_is_of_the_checkpoints_tensor(directory: Path, tmp_path: Path) -> None:
    file = write_file(directory, tmp_path / "m.gguf", newer=True)
    stored = {tensor.name: tensor for tensor in iter_weights([file])}
    tensor = stored["model.layers.1.self_attn.kv_b_proj.weight"]
    expected = load_file(directory / "model.safetensors")[tensor.name]
    assert tensor.shape == tuple(expected.shape)
    assert torch.equal(tensor.read(Extent(0, 44, 88)), expected[44:])


def test_matrices_that_do_not_go_together_are_an_error(directory: Path, tmp_path: Path) -> None:
    shapes = {"blk.0.attn_k_b.weight": (HEADS, RANK, NOPE), "blk.0.attn_v_b.weight": (HEADS, V_DIM, RANK + 1)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    file = write_gguf(tmp_path / "m.gguf", {}, arch=ARCH, tensors=tensors)
    with pytest.raises(WeightError, match=r"'blk\.0\.attn_k_b\.weight'.* do not go together"):
        list(iter_weights([file]))


def test_one_of_two_matrices_is_left_over(directory: Path, tmp_path: Path) -> None:
    tensors = {"blk.0.attn_k_b.weight": np.ones((HEADS, RANK, NOPE), np.float32)}
    [stored] = iter_weights([write_gguf(tmp_path / "m.gguf", {}, arch=ARCH, tensors=tensors)])
    assert stored.name == "blk.0.attn_k_b.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope.scaling.yarn_log_multiplier": None}, "yarn_log_multiplier"),
        ({"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"attention.kv_lora_rank": None}, "kv_lora_rank"),
        ({"attention.key_length_mla": ROTARY}, "8 rotated elements of a key of 8"),
    ],
)
def test_metadata_that_is_refused(directory: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = write_file(directory, tmp_path / "m.gguf", newer=True, **changes)
    with pytest.raises(StoreError, match=rf"m\.gguf: .*{message}"):
        config_json(read_gguf_header(file))


def test_a_layer_behind_the_last_is_left_alone(directory: Path, tmp_path: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({**tensors, "model.layers.3.eh_proj.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    runner_of(tmp_path)
    save_file({**tensors, "model.layers.4.eh_proj.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match="left over"):
        runner_of(tmp_path)


def test_an_int8_checkpoint_keeps_what_makes_keys_and_values_floating(directory: Path, tmp_path: Path) -> None:
    write_tokenizer(directory / "tokenizer.json")
    out = tmp_path / "int8"
    write(read_model("model", directory, find_weights(directory)), out)
    written = load_file(out / "model.safetensors")
    prefix = "model.layers.0.self_attn."
    int8 = {name for name, tensor in written.items() if name.startswith(prefix) and tensor.dtype == torch.int8}
    assert int8 == {f"{prefix}{name}.weight" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")}
    assert written[f"{prefix}kv_b_proj.weight"].dtype == torch.bfloat16
    error = served_logprobs(runner_of(out)) - expected_logprobs(directory)
    assert error.square().mean() < 0.02 * expected_logprobs(directory).var()
