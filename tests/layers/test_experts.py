"""The layer of experts: transformers' block, however a checkpoint holds its weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from app.kernels import dispatch
from app.kernels.collective import Ranks
from app.kernels.types import Act, StepArena
from app.layers.config import ClampedSwiglu, ExpertsConfig, GroupsConfig
from app.layers.experts import Experts
from app.quant.placement import Placement, WeightFormat
from tests.kernels.util import poisoned, randn, relative_error

CPU = torch.device("cpu")
COUNT, CHOSEN, INNER, WIDTH, SHARED = 9, 3, 36, 64, 100
PLAIN = Placement(torch.float32, CPU)
NATIVE = [WeightFormat.PACKED_INT8, WeightFormat.PACKED_BF16]
needs_kernels = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")


def make_layer(placement: Placement, *, normalise: bool = True, **changes: Any) -> Experts:
    shape = {"count": COUNT, "chosen": CHOSEN, "width": INNER, "normalise": normalise, **changes}
    return Experts(ExpertsConfig(**shape), WIDTH, placement=placement)


Block = Any
"""A layer of experts of transformers."""
AnyBlock = TypeVar("AnyBlock", bound=torch.nn.Module)


def reference(*, normalise: bool) -> Qwen3MoeSparseMoeBlock:
    config = Qwen3MoeConfig(
        hidden_size=WIDTH,
        moe_intermediate_size=INNER,
        num_experts=COUNT,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=normalise,
    )
    return randomised(Qwen3MoeSparseMoeBlock(config))


def gated_reference() -> tuple[Qwen2MoeSparseMoeBlock, dict[str, Any]]:
    """A block with a shared expert behind a gate, and the config's fields of it."""
    config = Qwen2MoeConfig(
        hidden_size=WIDTH,
        moe_intermediate_size=INNER,
        shared_expert_intermediate_size=SHARED,
        num_experts=COUNT,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=False,
    )
    fields = {"normalise": False, "shared_width": SHARED, "shared_gate": True}
    return randomised(Qwen2MoeSparseMoeBlock(config)), fields


def grouped_reference() -> tuple[DeepseekV3MoE, dict[str, Any]]:
    """A block with a shared expert, which chooses by groups and a bias."""
    config = DeepseekV3Config(
        hidden_size=WIDTH,
        moe_intermediate_size=INNER,
        n_shared_experts=2,
        n_routed_experts=COUNT,
        num_experts_per_tok=CHOSEN,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
    )
    fields = {
        "scoring": "sigmoid",
        "scale": 2.5,
        "correction": True,
        "groups": GroupsConfig(count=3, chosen=2, best=2),
        "shared_width": 2 * INNER,
    }
    return randomised(DeepseekV3MoE(config)), fields


def randomised(block: AnyBlock) -> AnyBlock:
    with torch.no_grad():
        for seed, parameter in enumerate([*block.parameters(), *block.buffers()]):
            parameter.copy_(randn(*parameter.shape, seed=seed) / 8)
    return block


def tensors(block: Block) -> dict[str, Tensor]:
    """The block's weights as checkpoints hold them."""
    gate, up = block.experts.gate_up_proj.data.chunk(2, dim=1)
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": block.experts.down_proj.data}
    each = itertools.product(range(COUNT), parts.items())
    beside = {name: tensor for name, tensor in block.state_dict().items() if not name.startswith("experts.")}
    named = {f"mlp.{name}".replace("shared_experts", "shared_expert"): tensor for name, tensor in beside.items()}
    return named | {f"mlp.experts.{i}.{name}.weight": part[i] for i, (name, part) in each}


def fill(layer: Experts, block: Block) -> Experts:
    destinations, source = layer.destinations("mlp"), tensors(block)
    assert destinations.keys() == source.keys()
    for name, destination in destinations.items():
        assert tuple(destination.shape) == tuple(source[name].shape)
        assert destination.numel() == source[name].numel()
        destination.copy_(source[name])
    return layer


def call(layer: Experts, x_TD: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    arena = StepArena(x_TD.shape[0] + 3, CPU)
    layer.layout.take(arena)
    reserved = arena.nbytes()
    arena.begin(x_TD.shape[0])
    buffers = layer.layout.take(arena)
    assert arena.nbytes() == reserved
    buffers.x.values.copy_(x_TD)
    out = poisoned(*x_TD.shape, dtype=dtype)
    layer(buffers, Act(out))
    return out


@pytest.mark.parametrize("normalise", [False, True])
def test_is_the_block_of_transformers(normalise: bool) -> None:
    block, x = reference(normalise=normalise), randn(11, WIDTH, seed=9)
    out = call(fill(make_layer(PLAIN, normalise=normalise), block), x)
    with torch.no_grad():
        assert relative_error(out, block(x[None])[0]) < 1e-5


@pytest.mark.parametrize("make", [gated_reference, grouped_reference])
def test_a_shared_expert_is_the_blocks(make: Callable[[], tuple[Block, dict[str, Any]]]) -> None:
    (block, fields), x = make(), randn(11, WIDTH, seed=9)
    out = call(fill(make_layer(PLAIN, **fields), block), x)
    with torch.no_grad():
        assert relative_error(out, block(x[None])[0]) < 1e-5


@needs_kernels
@pytest.mark.parametrize("weight_format", NATIVE)
@pytest.mark.parametrize("make", [gated_reference, grouped_reference])
def test_native_shared_experts_stay_close(
    make: Callable[[], tuple[Block, dict[str, Any]]], weight_format: WeightFormat
) -> None:
    (block, fields), x = make(), randn(50, WIDTH, seed=9)
    dtype = torch.bfloat16 if weight_format is WeightFormat.PACKED_BF16 else torch.float32
    out = call(fill(make_layer(Placement(dtype, CPU, weight_format), **fields), block), x, dtype)
    with torch.no_grad():
        expected = block(x[None])[0]
    assert ((out.double() - expected).norm(dim=1) / expected.norm(dim=1)).median() < 2e-2


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


def test_the_size_of_a_shared_expert_is_known_too() -> None:
    meta = Placement(torch.bfloat16, torch.device("meta"), WeightFormat.PACKED_INT8)
    destinations = make_layer(meta, shared_width=SHARED, shared_gate=True, correction=True).destinations("mlp")
    shared = sum(d.nbytes for name, d in destinations.items() if ".shared_expert." in name)
    assert shared == 3 * SHARED * WIDTH + 4 * (2 * SHARED + WIDTH)
    assert destinations["mlp.shared_expert_gate.weight"].nbytes == 2 * WIDTH
    assert destinations["mlp.gate.e_score_correction_bias"].nbytes == 4 * COUNT


class Sum:
    """Of two ranks whose results come one after the other."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def all_reduce(self, values: Tensor) -> None:
        self.total = self.total + values
        values.copy_(self.total)

    def all_gather(self, parts: Tensor) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("shared", [False, True])
def test_ranks_share_every_experts_width(shared: bool) -> None:
    block, fields = gated_reference() if shared else (reference(normalise=True), {})
    x, meeting = randn(5, WIDTH, seed=9), Sum()
    expected = call(fill(make_layer(PLAIN, **fields), block), x)
    for rank in range(2):
        ranks = Ranks(rank, 2)
        ranks.join(meeting)
        layer = fill(make_layer(replace(PLAIN, ranks=ranks), **fields), block)
        assert layer.weight.inner == INNER // 2
        out = call(layer, x)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "'gelu'"),
        ({"shared_gate": True}, "gate of no shared expert"),
        ({"count": 1025}, "1025 experts"),
        ({"activation": ClampedSwiglu(alpha=1.7, limit=7.0), "shared_width": 8}, "clamped gate"),
    ],
)
def test_what_no_kernel_computes_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_layer(PLAIN, **changes)
