"""A Qwen3-MoE out of every form of file: tensors of each expert, of all of them, int8 ones, GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from app.kernels import dispatch
from app.models.names import EXPERT_STACKS
from app.quality.quantize import write
from app.runner.errors import RunnerError
from app.runner.loading import check_shares, read_model_config
from app.runner.start import make_runner
from app.store import Store, resolve
from app.store.files import find_weights, read_model
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.tiny import make_reference
from tests.runner.driver import discard, engine_config, runner_of
from tests.store.tiny import VOCAB, gguf_name, write_gguf, write_tokenizer

SHAPE: dict[str, Any] = {"vocab_size": len(VOCAB), "moe_intermediate_size": 32}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint as published ones are: with tensors of each expert."""
    made = checkpoint(tmp_path / "model", "qwen3moe", **SHAPE)
    assert "model.layers.0.mlp.experts.8.up_proj.weight" in load_file(made / "model.safetensors")
    return made


def fused(directory: Path, to: Path) -> Path:
    """The same with the tensors that transformers 5 has in memory."""
    to.mkdir()
    state = make_reference("qwen3moe", **SHAPE).state_dict()
    assert state["model.layers.0.mlp.experts.gate_up_proj"].shape == (9, 64, 64)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, to / "model.safetensors")
    (to / "config.json").write_text((directory / "config.json").read_text())
    return to


def test_tensors_of_all_experts_are_those_of_each(directory: Path, tmp_path: Path) -> None:
    stacked = fused(directory, tmp_path / "fused")
    each = {tensor.name: tensor for tensor in iter_weights([directory / "model.safetensors"], EXPERT_STACKS)}
    listed = {tensor.name: tensor for tensor in iter_weights([stacked / "model.safetensors"], EXPERT_STACKS)}
    assert {name: (tensor.shape, tensor.nbytes) for name, tensor in listed.items()} == {
        name: (tensor.shape, tensor.nbytes) for name, tensor in each.items()
    }
    assert all(torch.equal(tensor.read(), each[name].read()) for name, tensor in listed.items())
    torch.testing.assert_close(served_logprobs(runner_of(stacked)), expected_logprobs(directory), rtol=0, atol=1e-4)


def test_a_stack_of_another_shape_is_left_over(directory: Path, tmp_path: Path) -> None:
    stacked = fused(directory, tmp_path / "fused")
    file = stacked / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    save_file({**tensors, name: tensors[name][:8].contiguous()}, file)
    with pytest.raises(WeightError, match=r"experts\.8\.gate_proj.* missing"):
        runner_of(stacked)
    for odd in (tensors[name].flatten(0, 1), tensors[name][:, :63].contiguous(), tensors[name][:0]):
        save_file({**tensors, name: odd}, file)
        with pytest.raises(WeightError, match=r"missing|bad header"):
            runner_of(stacked)


@pytest.mark.parametrize("layout", ["each", "fused"])
def test_an_int8_checkpoint_has_int8_experts_and_a_floating_router(
    directory: Path, tmp_path: Path, layout: str
) -> None:
    source = directory if layout == "each" else fused(directory, tmp_path / "fused")
    write_tokenizer(source / "tokenizer.json")
    out = tmp_path / "int8"
    write(read_model("model", source, find_weights(source)), out)
    written = load_file(out / "model.safetensors")
    experts = {name for name in written if ".experts." in name and not name.endswith("_scale")}
    assert len(experts) == 3 * 9 * 3
    assert {written[name].dtype for name in experts} == {torch.int8}
    assert {f"{name}_scale" for name in experts} <= written.keys()
    assert written["model.layers.0.mlp.gate.weight"].dtype == torch.bfloat16
    config = json.loads((out / "config.json").read_text())
    assert any(pattern.endswith(r"\.mlp\.gate$") for pattern in config["quantization_config"]["ignore"])
    error = served_logprobs(runner_of(out)) - expected_logprobs(directory)
    assert error.square().mean() < 0.02 * expected_logprobs(directory).var()


def gguf_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By checkpoint name, and those that llama.cpp's converter stacks by its own."""
    plain = {name: tensor.numpy() for name, tensor in tensors.items() if ".mlp." not in name}
    names, made = gguf.TENSOR_NAMES, {}
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp"

        def name_of(kind: gguf.MODEL_TENSOR, layer: int = layer) -> str:
            assert kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.QWEN3MOE]
            return f"{names[kind].format(bid=layer)}.weight"

        made[name_of(gguf.MODEL_TENSOR.FFN_GATE_INP)] = tensors[f"{prefix}.gate.weight"].numpy()
        for part in ("gate", "up", "down"):
            stack = torch.stack([tensors[f"{prefix}.experts.{i}.{part}_proj.weight"] for i in range(9)])
            made[name_of(gguf.MODEL_TENSOR[f"FFN_{part.upper()}_EXP"])] = stack.numpy()
    return plain, made


def test_a_gguf_file_is_the_same_model(directory: Path, tmp_path: Path) -> None:
    plain, stacked = gguf_tensors(load_file(directory / "model.safetensors"))
    assert {gguf_name(name) for name in plain} | stacked.keys() >= {"blk.2.attn_q_norm.weight", "output.weight"}
    arch = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3MOE]
    metadata = {
        "block_count": 3,
        "context_length": 256,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 6,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "expert_count": 9,
        "expert_used_count": 3,
        "expert_feed_forward_length": 32,
    }
    extra = {f"{arch}.{key}": value for key, value in metadata.items()} | {"tokenizer.ggml.pre": "qwen2"}
    file = write_gguf(tmp_path / "m.gguf", plain, arch=arch, extra=extra, tensors=stacked)
    files = resolve(str(file), Store(tmp_path / "home"))
    config = engine_config(files.directory, weights=tuple(map(str, files.weights)))
    served = served_logprobs(make_runner(config, discard))
    torch.testing.assert_close(served, expected_logprobs(directory), rtol=0, atol=1e-4)


@pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")
def test_a_width_of_experts_that_cannot_be_packed_is_named(tmp_path: Path) -> None:
    odd = checkpoint(tmp_path, "qwen3moe", moe_intermediate_size=33)
    with pytest.raises(RunnerError, match=r"moe_intermediate_size = 33 \(K is no multiple"):
        runner_of(odd, dtype="auto", quantization="auto", kernels="strict")
    dispatch.configure(dispatch.Mode.AUTO, 1)


def test_ranks_that_cannot_share_the_experts_are_refused(tmp_path: Path) -> None:
    odd = checkpoint(tmp_path, "qwen3moe", moe_intermediate_size=33)
    with pytest.raises(RunnerError, match=r"does not divide the model's moe_intermediate_size = 33; use one of 1$"):
        check_shares(read_model_config(odd), 2)
