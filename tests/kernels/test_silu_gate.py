"""``silu_gate`` in every form against a float64 formula, and against transformers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridRMSNormGated

from app.kernels.silu_gate import silu_gate
from app.kernels.types import Act
from tests.kernels.delta import IMPLEMENTATIONS, cases, running
from tests.kernels.test_gates import gate_of, int8_act
from tests.kernels.util import INT8_TOLERANCE, TOLERANCE, dequantize, poisoned_act, randn, relative_error, steps

GROUPS = [(1, 1), (1, 1100), (3, 21), (4, 64), (2, 129)]
"""How many, and how wide."""
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def gated64(x: Tensor, gate: Tensor, weight: Tensor | None, groups: int, eps: float) -> Tensor:
    z = gate.double()
    y = x.double() * (z / (1 + (-z).exp()))
    if weight is None:
        return y
    parts = y.unflatten(1, (groups, -1))
    normed: Tensor = (parts / (parts.pow(2).mean(-1, keepdim=True) + eps).sqrt()).flatten(1) * weight.double()
    return normed


@cases(
    "dtype, tokens, shape, normed",
    itertools.product(DTYPES, [0, 1, 9], GROUPS, [True, False]),
    [
        (torch.float32, 0, GROUPS[2], True),
        (torch.bfloat16, 1, GROUPS[3], True),
        *((DTYPES[(i + j) % 2], 4, shape, bool(j)) for i, shape in enumerate(GROUPS) for j in range(2)),
    ],
)
def test_against_fp64(
    implementation: str, dtype: torch.dtype, tokens: int, shape: tuple[int, int], normed: bool
) -> None:
    groups, width = shape
    columns = groups * width
    x, gate = randn(tokens, columns, seed=1, dtype=dtype), gate_of(tokens, columns, dtype)
    weight = randn(columns, seed=2) if normed else None
    out = poisoned_act(tokens, columns, dtype)
    silu_gate(x, gate, out, weight_N=weight, groups=groups, eps=1e-5)
    if tokens:
        assert relative_error(out.values, gated64(x, gate, weight, groups, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("groups", "width"), GROUPS)
@pytest.mark.parametrize("normed", [True, False], ids=["normed", "plain"])
def test_int8_is_the_rounded_result(implementation: str, groups: int, width: int, normed: bool) -> None:
    columns = groups * width
    x, gate = randn(7, columns, seed=1), gate_of(7, columns, torch.float32)
    x[3] = 0
    weight = randn(columns, seed=2) if normed else None
    out = int8_act(implementation, 7, columns)
    silu_gate(x, gate, out, weight_N=weight, groups=groups, eps=1e-5)
    expected = gated64(x, gate, weight, groups, 1e-5)
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out) + 1e-6).all()
    assert out.values[3].eq(0).all()


def test_a_scale_a_token_is_not_for_native_kernels(implementation: str) -> None:
    x, gate, weight = randn(3, 130), gate_of(3, 130, torch.float32), randn(130, seed=1)
    out = int8_act("triton", 3, 130)
    silu_gate(x, gate, out, weight_N=weight, groups=2, eps=1e-6)
    assert relative_error(dequantize(out), gated64(x, gate, weight, 2, 1e-6)) < INT8_TOLERANCE
    if implementation == "triton":
        with pytest.raises(ValueError, match="by tokens"):
            silu_gate(x, gate, poisoned_act(3, 130, torch.int8))


def test_rows_do_not_see_each_other(implementation: str) -> None:
    x, gate, weight = randn(5, 96), gate_of(5, 96, torch.float32), randn(96, seed=1)
    x[2] = float("nan")
    whole, alone = poisoned_act(5, 96), poisoned_act(1, 96)
    silu_gate(x, gate, whole, weight_N=weight, eps=1e-6)
    silu_gate(x[3:4], gate[3:4], alone, weight_N=weight, eps=1e-6)
    assert torch.equal(whole.values[3:4], alone.values)
    assert whole.values[2].isnan().all()


def test_agrees_with_transformers(implementation: str) -> None:
    module = GraniteMoeHybridRMSNormGated(96, group_size=32, eps=1e-6)
    module.weight.data = randn(96, seed=2)
    x, gate, out = randn(9, 96), gate_of(9, 96, torch.float32), poisoned_act(9, 96)
    silu_gate(x, gate, out, weight_N=module.weight.data, groups=3, eps=1e-6)
    assert relative_error(out.values, module(x, gate).detach()) < 1e-6


def test_refuses_arguments_that_do_not_fit() -> None:
    x, gate, out = randn(2, 12), randn(2, 12), poisoned_act(2, 12)
    with pytest.raises(ValueError, match="5 groups do not share 12 columns"):
        silu_gate(x, gate, out, weight_N=torch.ones(12), groups=5)
    with pytest.raises(ValueError, match=r"weight has shape \[6\]"):
        silu_gate(x, gate, out, weight_N=torch.ones(6), groups=2)
    with pytest.raises(ValueError, match=r"gate is torch.bfloat16"):
        silu_gate(x, gate.bfloat16(), out)
    with pytest.raises(ValueError, match="silu_gate: out has shape"):
        silu_gate(x, gate, Act(torch.empty(2, 11)))
