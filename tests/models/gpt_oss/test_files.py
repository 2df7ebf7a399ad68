"""A gpt-oss out of every form of file: experts in MXFP4 and plain, int8, GGUF."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from app.models.gpt_oss.names import NAMES
from app.quality.quantize import write as write_int8
from app.quant.destination import Extent
from app.store import Store, resolve
from app.store.errors import StoreError
from app.store.files import find_weights, read_model
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.gguf_model import is_the_model, named, write_model
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS, close
from tests.models.tiny import PagedExecution, load, make_reference, reference_logits, save
from tests.runner.driver import runner_of
from tests.store.tiny import VOCAB, Array, write_json, write_tokenizer

LAYERS = 2
# The limit is that of llama.cpp, whose files have no word for it.
SHAPE: dict[str, Any] = {"vocab_size": len(VOCAB), "num_hidden_layers": LAYERS, "swiglu_limit": 7.0}
STACKS = NAMES.checkpoint.stacks


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    """Its experts' weights are values of MXFP4."""
    model, generator = make_reference("gpt_oss", **SHAPE), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in model.model.layers:
            for stack in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                stack.copy_(convert_moe_packed_tensors(*halves(stack, generator), dtype=torch.float32))
    return model


def halves(stack: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random blocks and scales of a stack [X, K, N]."""
    experts, k, n = stack.shape
    blocks = torch.randint(256, (experts, n, k // 32, 16), dtype=torch.uint8, generator=generator)
    return blocks, torch.randint(122, 126, (experts, n, k // 32), dtype=torch.uint8, generator=generator)


def mxfp4_state(reference: PreTrainedModel) -> dict[str, Tensor]:
    """The reference's tensors as published checkpoints hold them."""
    state = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    generator = torch.Generator().manual_seed(4)
    for layer in range(LAYERS):
        for part in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            state[f"{name}_blocks"], state[f"{name}_scales"] = halves(state.pop(name), generator)
    return state


def write_mxfp4(reference: PreTrainedModel, directory: Path) -> Path:
    """A checkpoint whose blocks and scales lie in different files."""
    config = {**reference.config.to_dict(), "architectures": ["GptOssForCausalLM"]}
    directory.mkdir()
    write_json(directory / "config.json", config | {"quantization_config": {"quant_method": "mxfp4"}})
    scales = {name: tensor for name, tensor in mxfp4_state(reference).items() if name.endswith("_scales")}
    others = {name: tensor for name, tensor in mxfp4_state(reference).items() if name not in scales}
    save_file(scales, directory / "model-00001-of-00002.safetensors")
    save_file(others, directory / "model-00002-of-00002.safetensors")
    return directory


def test_experts_in_mxfp4(reference: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = write_mxfp4(reference, tmp_path / "mxfp4")
    model, config = load(directory)
    logits = PagedExecution(model, config).sequence(TOKENS, [60, 40], SHUFFLED_BLOCKS)
    close(logits, reference_logits(reference, TOKENS))
    with caplog.at_level(logging.INFO):
        runner_of(directory, kernels="reference")
    said = [record.getMessage() for record in caplog.records if "MXFP4" in record.getMessage()]
    assert said == ["weights that are stored as MXFP4 are served as plain"]


def test_extents_of_mxfp4_are_those_of_the_whole(reference: PreTrainedModel, tmp_path: Path) -> None:
    """Which alone ranks read: of an odd number of columns too."""
    directory = write_mxfp4(reference, tmp_path / "mxfp4")
    listed = {tensor.name: tensor for tensor in iter_weights(sorted(directory.glob("*.safetensors")), STACKS)}
    name = "model.layers.1.mlp.experts.4.{}_proj.weight"
    for part, shape in (("gate", (64, 64)), ("up", (64, 64)), ("down", (64, 64))):
        stored = listed[name.format(part)]
        whole = stored.read()
        assert (stored.shape, whole.shape) == (shape, shape)
        for dim in (0, 1):
            assert stored.read(Extent(dim, 11, 50)).equal(Extent(dim, 11, 50).of(whole))


@pytest.mark.parametrize(
    ("half", "change", "message"),
    [
        ("scales", None, "missing"),
        ("scales", lambda tensor: tensor[:, :, :1].contiguous(), "missing"),
        ("blocks", lambda tensor: tensor[..., :8].contiguous(), "missing"),
        ("scales", lambda tensor: tensor.float(), "MXFP4 is of bytes"),
    ],
)
def test_what_is_no_mxfp4_is_refused(
    reference: PreTrainedModel, tmp_path: Path, half: str, change: Any, message: str
) -> None:
    directory = write_mxfp4(reference, tmp_path / "mxfp4")
    file = directory / ("model-00001-of-00002.safetensors" if half == "scales" else "model-00002-of-00002.safetensors")
    tensors = load_file(file)
    name = f"model.layers.1.mlp.experts.down_proj_{half}"
    tensor = tensors.pop(name)
    save_file(tensors if change is None else {**tensors, name: change(tensor)}, file)
    with pytest.raises(WeightError, match=message):
        load(directory)


def test_an_int8_checkpoint_has_int8_experts_and_a_floating_router(reference: PreTrainedModel, tmp_path: Path) -> None:
    source, out = save(reference, tmp_path / "plain"), tmp_path / "int8"
    write_tokenizer(source / "tokenizer.json")
    write_int8(read_model("model", source, find_weights(source)), out)
    written = load_file(out / "model.safetensors")
    experts = {name for name in written if ".experts." in name and name.endswith(".weight")}
    assert len(experts) == LAYERS * 5 * 3
    assert {written[name].dtype for name in experts} == {torch.int8}
    assert written["model.layers.0.mlp.gate.weight"].dtype != torch.int8
    assert written["model.layers.0.mlp.experts.3.up_proj.bias"].shape == (64,)
    error = served_logprobs(runner_of(out)) - expected_logprobs(source)
    # Where two experts are almost equal another may be chosen.
    assert error.square().mean() < 0.1 * expected_logprobs(source).var()


def gguf_tensors(reference: PreTrainedModel) -> dict[str, Array]:
    """As llama.cpp's converter makes them: gate and up apart, no matrix transposed."""
    others, stacks = {}, {}
    for name, tensor in reference.state_dict().items():
        match name.rsplit(".", 1)[-1]:
            case "sinks":
                others[f"{name}.weight"] = tensor
            case "gate_up_proj" | "gate_up_proj_bias" | "down_proj" | "down_proj_bias" as part:
                layer, kind = name.split(".")[2], "bias" if part.endswith("bias") else "weight"
                rows = tensor if kind == "bias" else tensor.transpose(1, 2)
                parts = {"down": rows} if part.startswith("down") else {"gate": rows[:, ::2], "up": rows[:, 1::2]}
                for which, values in parts.items():
                    stem = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[f"FFN_{which.upper()}_EXP"]].format(bid=layer)
                    stacks[f"{stem}.{kind}"] = np.ascontiguousarray(values.numpy())
            case _:
                others[name] = tensor
    return named(MODEL_ARCH.GPT_OSS, {name: values.numpy() for name, values in others.items()}) | stacks


def write_gguf(path: Path, reference: PreTrainedModel, *, mxfp4: bool = False, **metadata: Any) -> Path:
    """``__`` in a key is a dot."""
    config, tensors = reference.config, gguf_tensors(reference)
    said = {
        "attention__key_length": config.head_dim,
        "attention__value_length": config.head_dim,
        "rope__freq_base": config.rope_parameters["rope_theta"],
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.intermediate_size,
        "attention__sliding_window": config.sliding_window,
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": config.rope_parameters["factor"],
        "rope__scaling__original_context_length": config.rope_parameters["original_max_position_embeddings"],
        **metadata,
    }
    types = {name: GGMLQuantizationType.MXFP4 for name in tensors if mxfp4 and name.endswith("_exps.weight")}
    keys = {key.replace("__", "."): value for key, value in said.items()}
    return write_model(path, reference, MODEL_ARCH.GPT_OSS, keys, tensors=tensors, types=types)


def test_every_name_of_llama_cpp_is_known() -> None:
    assert NAMES.gguf is not None
    for tensor in gguf.MODEL_TENSORS[MODEL_ARCH.GPT_OSS]:
        name = f"{gguf.TENSOR_NAMES[tensor].format(bid=0)}.weight"
        assert NAMES.gguf.of(name)[0] != name


@pytest.mark.parametrize("mxfp4", [False, True])
def test_a_gguf_file_is_the_model_it_was_written_of(reference: PreTrainedModel, tmp_path: Path, mxfp4: bool) -> None:
    is_the_model(write_gguf(tmp_path / "m.gguf", reference, mxfp4=mxfp4), reference)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_gating_func": 2}, "expert_gating_func = 2"),
        ({"expert_used_count": 6}, "num_experts_per_tok = 6"),
        ({"expert_feed_forward_length": None}, "expert_feed_forward_length"),
    ],
)
def test_metadata_that_is_refused(
    reference: PreTrainedModel, tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        resolve(str(write_gguf(tmp_path / "m.gguf", reference, **metadata)), Store(tmp_path / "home"))
