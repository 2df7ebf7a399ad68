"""The layer of experts: transformers' block, however a checkpoint holds its weights."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from app.kernels import dispatch
from app.kernels.collective import Ranks
from app.kernels.types import Act, StepArena
from app.layers.config import ExpertsConfig
from app.layers.experts import Experts
from app.quant.placement import Placement, WeightFormat
from tests.kernels.util import poisoned, randn, relative_error

CPU = torch.device("cpu")
COUNT, CHOSEN, INNER, WIDTH = 9, 3, 36, 64
PLAIN = Placement(torch.float32, CPU)
NATIVE = [WeightFormat.PACKED_INT8, WeightFormat.PACKED_BF16]
needs_kernels = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")


def make_layer(placement: Placement, *, normalise: bool = True, **changes: Any) -> Experts:
    shape = {"count": COUNT, "chosen": CHOSEN, "width": INNER, "normalise": normalise, **changes}
    return Experts(ExpertsConfig(**shape), WIDTH, placement=placement)


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


def tensors(block: Qwen3MoeSparseMoeBlock) -> dict[str, Tensor]:
    """The block's weights as checkpoints hold them."""
    gate, up = block.experts.gate_up_proj.data.chunk(2, dim=1)
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": block.experts.down_proj.data}
    each = itertools.product(range(COUNT), parts.items())
    named = {"mlp.gate.weight": block.gate.weight.data}
    return named | {f"mlp.experts.{i}.{name}.weight": part[i] for i, (name, part) in each}


def fill(layer: Experts, block: Qwen3MoeSparseMoeBlock) -> Experts:
    destinations, source = layer.destinations("mlp"), tensors(block)
    assert destinations.keys() == source.keys()
    for name, destination in destinations.items():
        assert tuple(destination.shape) == tuple(source[name].shape)
        assert destination.numel() == source[name].numel()
        destination.copy_(source[name])
    return layer


def call(layer: Experts, x_TD: Tensor, dtype: torch.dtype = torch.float32, shared: Tensor | None = None) -> Tensor:
    arena = StepArena(x_TD.shape[0] + 3, CPU)
    layer.layout.take(arena)
    reserved = arena.nbytes()
    arena.begin(x_TD.shape[0])
    buffers = layer.layout.take(arena)
    assert arena.nbytes() == reserved
    buffers.x.values.copy_(x_TD)
    out = poisoned(*x_TD.shape, dtype=dtype)
    layer(buffers, Act(out), shared=shared)
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


@needs_kernels
@pytest.mark.parametrize("weight_format", NATIVE)
def test_the_router_stays_floating(weight_format: WeightFormat) -> None:
    """Its logits are those of inputs and weights that are rounded to bf16 and no further."""
    block, x = reference(normalise=True), randn(50, WIDTH, seed=9)
    layer = fill(make_layer(Placement(torch.float32, CPU, weight_format)), block)
    arena = StepArena(50, CPU)
    arena.begin(50)
    buffers = layer.layout.take(arena)
    buffers.x.values.copy_(x)
    layer(buffers, Act(torch.empty(50, WIDTH)))
    expected = x.bfloat16().double() @ block.gate.weight.data.bfloat16().double().T
    assert relative_error(buffers.logits, expected) < 1e-6


@pytest.mark.parametrize("weight_format", list(WeightFormat))
def test_its_size_is_known_before_anything_is_allocated(weight_format: WeightFormat) -> None:
    destinations = make_layer(Placement(torch.bfloat16, torch.device("meta"), weight_format)).destinations("mlp")
    expected = {WeightFormat.PLAIN: 2, WeightFormat.PACKED_BF16: 2}.get(weight_format, 1)
    scales = 4 * COUNT * (2 * INNER + WIDTH) if expected == 1 else 0
    assert destinations.pop("mlp.gate.weight").nbytes == 2 * COUNT * WIDTH
    total = sum(destination.nbytes for destination in destinations.values())
    assert total == expected * COUNT * 3 * INNER * WIDTH + scales


def test_adds_what_a_shared_expert_made() -> None:
    layer, x, shared = fill(make_layer(PLAIN), reference(normalise=True)), randn(5, WIDTH), randn(5, WIDTH, seed=3)
    alone = call(layer, x)
    torch.testing.assert_close(call(layer, x, shared=shared), alone + shared)


class Sum:
    """Of two ranks whose results come one after the other."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def all_reduce(self, values: Tensor) -> None:
        self.total = self.total + values
        values.copy_(self.total)

    def all_gather(self, parts: Tensor) -> None:
        raise NotImplementedError


def test_ranks_share_every_experts_width() -> None:
    block, x, meeting = reference(normalise=True), randn(5, WIDTH, seed=9), Sum()
    expected = call(fill(make_layer(PLAIN), block), x)
    for rank in range(2):
        ranks = Ranks(rank, 2)
        ranks.join(meeting)
        layer = fill(make_layer(replace(PLAIN, ranks=ranks)), block)
        assert layer.weight.inner == INNER // 2
        out = call(layer, x)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"activation": "gelu"}, "'gelu'"), ({"shared_width": 8}, "shared expert"), ({"count": 1025}, "1025 experts")],
)
def test_what_no_kernel_computes_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_layer(PLAIN, **changes)
