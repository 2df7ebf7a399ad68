"""The layer of experts: transformers' block, however a checkpoint holds its weights."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from app.kernels import dispatch
from app.kernels.collective import Ranks
from app.kernels.int8 import quantize_groups
from app.kernels.types import Act, ActFormat, StepArena
from app.layers.experts import Experts, Stored
from app.quant.placement import Placement, WeightFormat
from tests.kernels.util import poisoned, randn, relative_error

CPU = torch.device("cpu")
COUNT, CHOSEN, INNER, WIDTH = 9, 3, 36, 64
PLAIN = Placement(torch.float32, CPU)
NATIVE = [WeightFormat.PACKED_INT8, WeightFormat.PACKED_BF16]
needs_kernels = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")


def make_layer(placement: Placement, *, normalise: bool = True) -> Experts:
    return Experts(COUNT, CHOSEN, INNER, WIDTH, placement=placement, normalise=normalise)


def reference(*, normalise: bool) -> Qwen3MoeSparseMoeBlock:
    config = Qwen3MoeConfig(
        hidden_size=WIDTH,
        moe_intermediate_size=INNER,
        num_experts=COUNT,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=normalise,
    )
    block = Qwen3MoeSparseMoeBlock(config)
    with torch.no_grad():
        for seed, parameter in enumerate(block.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed) / 8)
    return block


def tensors(block: Qwen3MoeSparseMoeBlock, stored: Stored) -> dict[str, Tensor]:
    """The block's weights as a checkpoint that stores them so."""
    gate_up, down = block.experts.gate_up_proj.data, block.experts.down_proj.data
    named = {"mlp.gate.weight": block.gate.weight.data}
    if stored is Stored.FUSED:
        return named | {"mlp.experts.gate_up_proj": gate_up, "mlp.experts.down_proj": down}
    gate, up = gate_up.chunk(2, dim=1)
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    if stored is Stored.STACKED:
        return named | {f"mlp.experts.{name}.weight": part for name, part in parts.items()}
    each = itertools.product(parts.items(), range(COUNT))
    return named | {f"mlp.experts.{i}.{name}.weight": part[i] for (name, part), i in each}


def fill(layer: Experts, block: Qwen3MoeSparseMoeBlock, stored: Stored = Stored.EACH) -> Experts:
    destinations, source = layer.destinations("mlp", stored), tensors(block, stored)
    assert destinations.keys() == source.keys()
    for name, destination in destinations.items():
        assert tuple(destination.shape) == tuple(source[name].shape)
        assert destination.numel() == source[name].numel()
        destination.copy_(source[name])
    return layer


def call(layer: Experts, x_TD: Tensor, dtype: torch.dtype = torch.float32, shared: Tensor | None = None) -> Tensor:
    arena = StepArena(x_TD.shape[0] + 3, CPU)
    layer.take(arena, dtype)
    reserved = arena.nbytes()
    arena.begin(x_TD.shape[0])
    acts = layer.take(arena, dtype)
    assert arena.nbytes() == reserved
    x = Act(*quantize_groups(x_TD)) if layer.act_format is ActFormat.INT8 else Act(x_TD.to(dtype))
    out = poisoned(*x_TD.shape, dtype=dtype)
    layer(x, out, acts, shared=shared)
    return out


@pytest.mark.parametrize("normalise", [False, True])
def test_is_the_block_of_transformers(normalise: bool) -> None:
    block, x = reference(normalise=normalise), randn(11, WIDTH, seed=9)
    out = call(fill(make_layer(PLAIN, normalise=normalise), block), x)
    with torch.no_grad():
        assert relative_error(out, block(x[None])[0]) < 1e-5


@needs_kernels
@pytest.mark.parametrize("weight_format", NATIVE)
def test_native_layers_stay_close(weight_format: WeightFormat) -> None:
    block, x = reference(normalise=True), randn(50, WIDTH, seed=9)
    dtype = torch.bfloat16 if weight_format is WeightFormat.PACKED_BF16 else torch.float32
    out = call(fill(make_layer(Placement(dtype, CPU, weight_format)), block), x, dtype)
    with torch.no_grad():
        expected = block(x[None])[0]
    errors = (out.double() - expected).norm(dim=1) / expected.norm(dim=1)
    # Where two experts are almost equal another may be chosen.
    assert errors.median() < 2e-2
    assert (errors < 5e-2).float().mean() > 0.8


@pytest.mark.parametrize("stored", [Stored.FUSED, Stored.STACKED])
@pytest.mark.parametrize("weight_format", [WeightFormat.PLAIN, WeightFormat.INT8, *NATIVE])
def test_however_a_checkpoint_stores_them_they_are_the_same(weight_format: WeightFormat, stored: Stored) -> None:
    if weight_format in NATIVE and dispatch.unavailable() is not None:
        pytest.skip("no native kernels here")
    dtype = torch.bfloat16 if weight_format is WeightFormat.PACKED_BF16 else torch.float32
    block, placement = reference(normalise=True), Placement(dtype, CPU, weight_format)
    each, other = fill(make_layer(placement), block), fill(make_layer(placement), block, stored)
    x = randn(7, WIDTH, seed=9)
    assert call(other, x, dtype).equal(call(each, x, dtype))


@pytest.mark.parametrize("weight_format", list(WeightFormat))
def test_its_size_is_known_before_anything_is_allocated(weight_format: WeightFormat) -> None:
    layer = make_layer(Placement(torch.bfloat16, torch.device("meta"), weight_format))
    expected = {WeightFormat.PLAIN: 2, WeightFormat.PACKED_BF16: 2}.get(weight_format, 1)
    scales = 4 * COUNT * (2 * INNER + WIDTH) if expected == 1 else 0
    for stored in Stored:
        destinations = layer.destinations("mlp", stored)
        router = destinations.pop("mlp.gate.weight").nbytes
        assert router > 0
        total = sum(destination.nbytes for destination in destinations.values())
        assert total == expected * COUNT * 3 * INNER * WIDTH + scales


def test_adds_what_a_shared_expert_made() -> None:
    layer, x, shared = fill(make_layer(PLAIN), reference(normalise=True)), randn(5, WIDTH), randn(5, WIDTH, seed=3)
    alone = call(layer, x)
    torch.testing.assert_close(call(layer, x, shared=shared), alone + shared)


def test_ranks_cannot_share_it() -> None:
    two = replace(PLAIN, ranks=Ranks(0, 2))
    with pytest.raises(ValueError, match="several ranks"):
        make_layer(two)
