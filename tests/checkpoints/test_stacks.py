"""Tensors under other names, and several in one, as those that are meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.checkpoints.base import StoredTensor
from app.checkpoints.loader import iter_weights
from app.models.names import StoredParts
from app.quant.destination import Extent

STACKS = {
    "moe.gate_up": StoredParts(("mlp.experts.{expert}.gate.weight", "mlp.experts.{expert}.up.weight")),
    "moe.{expert}.w2.weight": StoredParts(("mlp.experts.{expert}.down.weight",)),
    "mlp.input.weight": StoredParts(("mlp.gate.weight", "mlp.up.weight")),
    "moe.router": StoredParts(("mlp.router",)),
}
STACK, PAIR = torch.randn(3, 4, 5), torch.randn(6, 5)
TENSORS = {
    "layers.1.moe.gate_up": STACK,
    "layers.1.moe.12.w2.weight": torch.randn(5, 4),
    "layers.0.mlp.input.weight": PAIR,
    "layers.0.moe.router": torch.randn(7),
    "layers.0.mlp.other.weight": torch.randn(2),
}


@pytest.fixture
def listed(tmp_path: Path) -> dict[str, StoredTensor]:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return {tensor.name: tensor for tensor in iter_weights([tmp_path / "model.safetensors"], STACKS)}


def test_every_tensor_is_the_one_that_is_meant(listed: dict[str, StoredTensor]) -> None:
    expected = {
        "layers.1.mlp.experts.12.down.weight": TENSORS["layers.1.moe.12.w2.weight"],
        "layers.0.mlp.gate.weight": PAIR[:3],
        "layers.0.mlp.up.weight": PAIR[3:],
        "layers.0.mlp.router": TENSORS["layers.0.moe.router"],
        "layers.0.mlp.other.weight": TENSORS["layers.0.mlp.other.weight"],
    }
    for expert in range(3):
        expected[f"layers.1.mlp.experts.{expert}.gate.weight"] = STACK[expert, :2]
        expected[f"layers.1.mlp.experts.{expert}.up.weight"] = STACK[expert, 2:]
    assert listed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert listed[name].shape == tuple(tensor.shape)
        assert listed[name].nbytes == tensor.nbytes
        assert torch.equal(listed[name].read(), tensor)


@pytest.mark.parametrize("extent", [Extent(0, 1, 2), Extent(1, 2, 5)])
def test_an_extent_is_of_what_is_meant(listed: dict[str, StoredTensor], extent: Extent) -> None:
    assert torch.equal(listed["layers.1.mlp.experts.2.up.weight"].read(extent), extent.of(STACK[2, 2:]))
    assert torch.equal(listed["layers.0.mlp.up.weight"].read(extent), extent.of(PAIR[3:]))


def test_rows_that_do_not_divide_stay_as_they_are(tmp_path: Path) -> None:
    odd = {"layers.0.mlp.input.weight": torch.zeros(5, 2), "layers.0.moe.gate_up": torch.zeros(4, 2)}
    save_file(odd, tmp_path / "model.safetensors")
    assert {tensor.name for tensor in iter_weights([tmp_path / "model.safetensors"], STACKS)} == odd.keys()
