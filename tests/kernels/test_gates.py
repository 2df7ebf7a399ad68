"""``gated_norm``, ``sigmoid_mul``, ``gelu_mul`` and ``head_norm_add`` in every form against float64 formulas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from app.kernels.gated_norm import gated_norm
from app.kernels.gelu_mul import gelu_mul
from app.kernels.head_norm_add import head_norm_add
from app.kernels.sigmoid_mul import sigmoid_mul
from app.kernels.types import Act
from tests.kernels.delta import IMPLEMENTATIONS, cases, running
from tests.kernels.util import (
    INT8_TOLERANCE,
    TOLERANCE,
    dequantize,
    poisoned,
    poisoned_act,
    randn,
    relative_error,
    steps,
)

HEADS = [(1, 1), (3, 21), (4, 64), (5, 80), (2, 129)]
"""How many, and how wide."""
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def gate_of(tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """Columns of a wider tensor, as a layer has them."""
    wide = poisoned(tokens, width + 3, dtype=dtype)
    wide[:, 1 : width + 1] = randn(tokens, width, seed=5, dtype=dtype) * 3
    return wide[:, 1 : width + 1]


def int8_act(implementation: str, tokens: int, width: int) -> Act:
    """Of groups; on a GPU of tokens."""
    if implementation == "triton":
        return Act(poisoned(tokens, width, dtype=torch.int8), poisoned(tokens, 1))
    return poisoned_act(tokens, width, torch.int8)


def norm64(x: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    heads = x.double().unflatten(1, (-1, weight.numel()))
    normed = heads / (heads.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    z = gate.double()
    gated: Tensor = normed.flatten(1) * (z / (1 + (-z).exp()))
    return gated


def gelu64(gate: Tensor, x: Tensor) -> Tensor:
    z = gate.double()
    gated: Tensor = z / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))) * x.double()
    return gated


def head_norm_add64(x: Tensor, weight: Tensor, addend: Tensor, eps: float, scale: float) -> Tensor:
    heads = x.double().unflatten(1, (-1, weight.numel()))
    normed = heads / (heads.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    added: Tensor = (normed.flatten(1) + addend.double()) * scale
    return added


def sigmoid64(x: Tensor, gate: Tensor) -> Tensor:
    return x.double() / (1 + (-gate.double()).exp())


@cases(
    "dtype, tokens, shape",
    itertools.product(DTYPES, [0, 1, 9], HEADS),
    [
        (torch.float32, 0, HEADS[1]),
        (torch.bfloat16, 1, HEADS[2]),
        *((DTYPES[i % 2], 4, shape) for i, shape in enumerate(HEADS)),
        (torch.bfloat16, 4, HEADS[4]),
    ],
)
def test_against_fp64(implementation: str, dtype: torch.dtype, tokens: int, shape: tuple[int, int]) -> None:
    heads, width = shape
    x, gate = randn(tokens, heads * width, seed=1, dtype=dtype), gate_of(tokens, heads * width, dtype)
    weight = randn(width, seed=2)
    normed, gated, by_gelu = (poisoned_act(tokens, heads * width, dtype) for _ in range(3))
    gated_norm(x, weight, gate, 1e-5, normed)
    sigmoid_mul(x, gate, gated)
    gelu_mul(x, gate, by_gelu)
    added, addend = poisoned(tokens, heads * width, dtype=dtype), randn(tokens, heads * width, seed=7, dtype=dtype)
    head_norm_add(x, weight, addend, added, eps=0.3, scale=0.7)
    if tokens:
        assert relative_error(by_gelu.values, gelu64(x, gate)) < TOLERANCE[dtype]
        assert relative_error(added, head_norm_add64(x, weight, addend, 0.3, 0.7)) < TOLERANCE[dtype]
        assert relative_error(normed.values, norm64(x, weight, gate, 1e-5)) < TOLERANCE[dtype]
        assert relative_error(gated.values, sigmoid64(x, gate)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("heads", "width"), HEADS)
def test_int8_is_the_rounded_result(implementation: str, heads: int, width: int) -> None:
    x, gate = randn(7, heads * width, seed=1), gate_of(7, heads * width, torch.float32)
    x[3] = 0
    weight = randn(width, seed=2)
    normed, gated, by_gelu = (int8_act(implementation, 7, heads * width) for _ in range(3))
    gated_norm(x, weight, gate, 1e-5, normed)
    sigmoid_mul(x, gate, gated)
    gelu_mul(x, gate, by_gelu)
    both = (normed, norm64(x, weight, gate, 1e-5)), (gated, sigmoid64(x, gate))
    for out, expected in (*both, (by_gelu, gelu64(x, gate))):
        assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out) + 1e-6).all()
        assert out.values[3].eq(0).all()


def test_a_scale_a_token_is_not_for_native_kernels(implementation: str) -> None:
    x, gate, weight = randn(3, 130), gate_of(3, 130, torch.float32), randn(65, seed=1)
    out = Act(poisoned(3, 130, dtype=torch.int8), poisoned(3, 1))
    gelu_mul(x, gate, out)
    assert relative_error(dequantize(out), gelu64(x, gate)) < INT8_TOLERANCE
    gated_norm(x, weight, gate, 1e-6, out)
    assert relative_error(dequantize(out), norm64(x, weight, gate, 1e-6)) < INT8_TOLERANCE
    if implementation == "triton":
        with pytest.raises(ValueError, match="by tokens"):
            gated_norm(x, weight, gate, 1e-6, poisoned_act(3, 130, torch.int8))
        with pytest.raises(ValueError, match="by tokens"):
            sigmoid_mul(x, gate, poisoned_act(3, 130, torch.int8))


def test_extreme_gates(implementation: str) -> None:
    far = 80.0 if implementation == "triton" else 1e30  # numpy, which interprets, warns of what overflows
    gate = torch.tensor([[-far, -80.0, 0.0, 80.0, far, float("nan")]])
    x, normed, gated = torch.ones(1, 6), poisoned_act(1, 6), poisoned_act(1, 6)
    sigmoid_mul(x, gate, gated)
    assert (gated.values[0, :5] - torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])).abs().max() < 1e-30
    gated_norm(x, torch.ones(6), gate, 0.0, normed)
    assert (normed.values[0, :5] - torch.tensor([0.0, 0.0, 0.0, 80.0, far])).abs().max() < 1e-6 * far
    assert normed.values[0, 5].isnan()
    assert gated.values[0, 5].isnan()


def test_rows_do_not_see_each_other(implementation: str) -> None:
    x, gate, weight = randn(5, 96), gate_of(5, 96, torch.float32), randn(32, seed=1)
    whole, alone = poisoned_act(5, 96), poisoned_act(1, 96)
    gated_norm(x, weight, gate, 1e-6, whole)
    gated_norm(x[3:4], weight, gate[3:4], 1e-6, alone)
    assert torch.equal(whole.values[3:4], alone.values)
    gelu_mul(x, gate, whole)
    gelu_mul(x[3:4], gate[3:4], alone)
    assert torch.equal(whole.values[3:4], alone.values)
    head_norm_add(x, weight, x, whole.values, eps=1e-6, scale=0.5)
    head_norm_add(x[3:4], weight, x[3:4], alone.values, eps=1e-6, scale=0.5)
    assert torch.equal(whole.values[3:4], alone.values)


def test_the_output_may_be_the_input() -> None:
    x, gate = randn(5, 96), gate_of(5, 96, torch.float32)
    expected = sigmoid64(x, gate)
    sigmoid_mul(x, gate, Act(x))
    assert relative_error(x, expected) < 1e-6
    expected = gelu64(x, gate)
    gelu_mul(x, gate, Act(x))
    assert relative_error(x, expected) < 1e-6
    weight, addend = randn(32, seed=1), randn(5, 96, seed=2)
    expected = head_norm_add64(x, weight, addend, 1e-6, 0.5)
    head_norm_add(x, weight, addend, addend, eps=1e-6, scale=0.5)
    assert relative_error(addend, expected) < 1e-6


def test_agrees_with_transformers(implementation: str) -> None:
    module = Qwen3NextRMSNormGated(32, eps=1e-6)
    module.weight.data = randn(32, seed=2)
    x, gate, out = randn(9, 96), gate_of(9, 96, torch.float32), poisoned_act(9, 96)
    gated_norm(x, module.weight.data, gate, 1e-6, out)
    expected = module(x.view(-1, 32), gate.reshape(-1, 32)).detach().view(9, 96)
    assert relative_error(out.values, expected) < 1e-6


def test_refuses_arguments_that_do_not_fit() -> None:
    x, gate, out = randn(2, 12), randn(2, 12), poisoned_act(2, 12)
    with pytest.raises(ValueError, match="expected heads of 5"):
        gated_norm(x, torch.ones(5), gate, 1e-6, out)
    with pytest.raises(ValueError, match="the rows of gate are not contiguous"):
        gated_norm(x, torch.ones(6), randn(12, 2).t(), 1e-6, out)
    with pytest.raises(ValueError, match=r"gate is torch.bfloat16"):
        sigmoid_mul(x, gate.bfloat16(), out)
    with pytest.raises(ValueError, match=r"gelu_mul: x has shape"):
        gelu_mul(x, gate[:, :11], out)
    with pytest.raises(ValueError, match="head_norm_add: x has 12 columns, expected heads of 5"):
        head_norm_add(x, torch.ones(5), x, x, eps=0.0, scale=1.0)
    with pytest.raises(ValueError, match=r"head_norm_add: addend is torch\.bfloat16"):
        head_norm_add(x, torch.ones(6), gate.bfloat16(), x, eps=0.0, scale=1.0)
    with pytest.raises(ValueError, match="sigmoid_mul: out has shape"):
        sigmoid_mul(x, gate, poisoned_act(2, 11))
