"""int8 checkpoints: of every family, what is quantised and that it serves what the floating one does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.checkpoints.header import WeightError
from app.checkpoints.int8 import write_int8_checkpoint
from app.checkpoints.loader import iter_weights
from app.kernels import dispatch
from app.kernels.int8 import quantize
from app.models.architectures import ARCHITECTURES, find
from app.models.config import ConfigError
from app.quant.destination import Extent
from tests.models.checkpoints import checkpoint, served_logprobs
from tests.models.tiny import VARIANTS, make_reference, save
from tests.runner.driver import Request, run, runner_of

FILE = "model.safetensors"
OF_EACH_KIND = {kind: name for name, (kind, _) in reversed(VARIANTS.items())}.values()
"""A variant of every class of transformers' configs."""
LAYERS = {"model.layers", "transformer.h", "gpt_neox.layers"}
NEAR = {"granite": 0.05, "minicpm3": 0.05, "granitemoehybrid": 0.1, "falcon_h1": 0.15}
"""Where it is not 1e-4: a factor on a projection takes weights that lie midway between two int8 values to either."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, 1)


def floating(directory: Path, variant: str, **shape: Any) -> Path:
    """A checkpoint in bf16, as most are published."""
    return save(make_reference(variant, **shape).to(torch.bfloat16), directory)


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def converted(source: Path, out: Path) -> Path:
    """The int8 checkpoint of another."""
    out.mkdir()
    write_int8_checkpoint(config_of(source), [source / FILE], out, progress=lambda _done, _total: None)
    return out


def greedy(directory: Path) -> tuple[list[int], Tensor]:
    """Tokens that an int8 engine answers, and what it gives to those of a prompt."""
    prompt = Request(0, [7 * i % 128 for i in range(40)], list(range(4)))
    runner = runner_of(directory, quantization="int8")
    run(runner, [prompt], 12)
    return prompt.outputs, served_logprobs(runner)


def architecture_of(variant: str) -> str:
    return type(make_reference(variant)).__name__


def test_every_family_has_a_variant() -> None:
    tested = {find(architecture_of(variant)).module for variant in OF_EACH_KIND}
    assert tested == {row.module for row in ARCHITECTURES if row.generates}


@pytest.mark.parametrize("variant", OF_EACH_KIND)
def test_it_serves_the_tokens_of_the_floating_one(variant: str, tmp_path: Path) -> None:
    source = floating(tmp_path / "floating", variant)
    out = converted(source, tmp_path / "int8")
    assert (out / FILE).stat().st_size < (source / FILE).stat().st_size
    tokens, logprobs = greedy(source)
    same, near = greedy(out)
    assert same == tokens
    torch.testing.assert_close(near, logprobs, rtol=0, atol=NEAR.get(variant, 1e-4))


@pytest.mark.parametrize("variant", OF_EACH_KIND)
def test_every_linear_layer_is_quantised(variant: str, tmp_path: Path) -> None:
    out = converted(floating(tmp_path / "floating", variant), tmp_path / "int8")
    stored = load_file(out / FILE)
    of_layers = {
        name
        for name in stored
        if name.startswith((*LAYERS, "model.per_layer_model_projection")) and stored[name].dim() == 2
    }
    kept = {name for name in of_layers if stored[name].dtype == torch.bfloat16}
    routers = (".mlp.gate.weight", ".mlp.shared_expert_gate.weight", "e_score_correction_bias")
    floats = (*routers, ".kv_b_proj.weight")
    assert all(name.endswith(floats) for name in kept), "but the routers of experts, and heads' matrices of latents"
    assert {name for name in of_layers if stored[name].dtype == torch.int8} == {
        name.removesuffix("_scale") for name in stored if name.endswith("_scale")
    }
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in stored.items() if name not in of_layers)


@pytest.mark.parametrize(("variant", "dim", "target"), [("qwen3_biases", 0, "Linear"), ("gpt2", 1, "Conv1D")])
def test_an_output_has_a_scale(variant: str, dim: int, target: str, tmp_path: Path) -> None:
    source = floating(tmp_path / "floating", variant)
    out = converted(source, tmp_path / "int8")
    assert config_of(out)["quantization_config"]["config_groups"]["group_0"]["targets"] == [target]
    original, stored = load_file(source / FILE), load_file(out / FILE)
    scaled = [name for name in stored if f"{name}_scale" in stored]
    assert scaled
    for name in scaled:
        values, scale = quantize(original[name].movedim(dim, 0))
        assert torch.equal(stored[name], values.movedim(0, dim))
        assert torch.equal(stored[f"{name}_scale"], scale.unsqueeze(1 - dim))


def test_it_reads_back_as_what_it_quantised(tmp_path: Path) -> None:
    source = floating(tmp_path / "floating", "qwen3_biases")
    out = converted(source, tmp_path / "int8")
    original = {stored.name: stored.read().float() for stored in iter_weights([source / FILE])}
    restored = {stored.name: stored.read().float() for stored in iter_weights([out / FILE])}
    assert restored.keys() == original.keys()
    for name, tensor in original.items():
        step = tensor.abs().amax(-1, keepdim=True) / 127 if tensor.dim() > 1 else torch.tensor(1e-6)
        assert ((restored[name] - tensor).abs() <= step * 0.51).all(), name


@pytest.mark.parametrize("dim", [0, 1])
def test_an_extent_has_the_scales_of_the_whole(dim: int, tmp_path: Path) -> None:
    values, scale = torch.randint(-127, 128, (6, 10), dtype=torch.int8), torch.rand(6 if dim == 0 else 10)
    save_file({"w": values, "w_scale": scale.unsqueeze(1 - dim)}, tmp_path / FILE)
    (stored,) = iter_weights([tmp_path / FILE])
    whole = values * scale.unsqueeze(1 - dim)
    assert torch.equal(stored.read(), whole)
    for extent in (Extent(0, 2, 5), Extent(1, 3, 9)):
        assert torch.equal(stored.read(extent), extent.of(whole))


@pytest.mark.parametrize("shape", [(10,), (10, 1), (1, 6), (6, 10), (1,)])
def test_other_scales_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    save_file({"w": torch.zeros(6, 10, dtype=torch.int8), "w_scale": torch.ones(shape)}, tmp_path / FILE)
    (stored,) = iter_weights([tmp_path / FILE])
    with pytest.raises(WeightError, match="'w_scale' is no scale for each row, or each column, of 'w'"):
        stored.read()


@pytest.mark.parametrize("variant", ["gpt2", "gemma3", "qwen3_5"])
def test_names_of_either_base_are_known(variant: str, tmp_path: Path) -> None:
    """Beside what the served model does not read, which stays whole and is named for other readers."""
    source = floating(tmp_path / "floating", variant)
    tensors = load_file(source / FILE)
    names = find(architecture_of(variant)).names.checkpoint
    renamed = {names.other_base + name.removeprefix(names.base): tensor for name, tensor in tensors.items()}
    beside = {f"{prefix}layers.0.proj.weight": torch.ones(4, 4, dtype=torch.bfloat16) for prefix in names.beside}
    save_file(renamed | beside, source / FILE)
    out = converted(source, tmp_path / "int8")
    stored = load_file(out / FILE)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.int8} >= {
        name for name in renamed if name.endswith(("down_proj.weight", "c_fc.weight"))
    }
    assert all(stored[name].dtype == torch.bfloat16 for name in beside)
    ignored = config_of(out)["quantization_config"]["ignore"]
    assert [pattern.replace("\\", "") for pattern in ignored] == ["lm_head", *(f"re:{x}.*" for x in names.beside)]


def test_what_has_no_layers_to_quantise_is_an_error(tmp_path: Path) -> None:
    config = config_of(checkpoint(tmp_path / "model", "gpt2"))
    save_file({"h.0.attn.other.weight": torch.ones(4, 4)}, tmp_path / FILE)
    out = tmp_path / "int8"
    out.mkdir()
    with pytest.raises(WeightError, match="no linear layers"):
        write_int8_checkpoint(config, [tmp_path / FILE], out, progress=lambda _done, _total: None)
    with pytest.raises(ConfigError, match="architectures"):
        write_int8_checkpoint({}, [tmp_path / FILE], out, progress=lambda _done, _total: None)
    assert not list(out.iterdir())
