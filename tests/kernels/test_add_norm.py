from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from app.kernels.add_norm import add_norm
from app.kernels.types import ACT_GROUP, Act
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


def norm64(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 17])
@pytest.mark.parametrize("width", [63, 576, 1000])
def test_norm_alone(dtype: torch.dtype, tokens: int, width: int) -> None:
    x, weight = randn(tokens, width, seed=1, dtype=dtype), randn(width, seed=2, dtype=dtype)
    before, out = x.clone(), poisoned_act(tokens, width, dtype)
    add_norm(x, weight, 1e-5, out)
    assert torch.equal(x, before)
    if tokens:
        assert relative_error(out.values, norm64(x, weight, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adds_into_the_residual_and_norms_the_sum(dtype: torch.dtype) -> None:
    x, residual = randn(5, 63, seed=1, dtype=dtype), randn(5, 63, seed=2, dtype=dtype)
    weight, out = randn(63, seed=3), poisoned_act(5, 63, dtype)
    # In fp32, rounded once: exactly the fp64 sum, rounded.
    total = (x.double() + residual.double()).to(dtype)
    add_norm(x, weight, 1e-6, out, residual=residual)
    assert torch.equal(residual, total)
    assert relative_error(out.values, norm64(total, weight, 1e-6)) < TOLERANCE[dtype]


def test_a_scale_a_token_is_not_for_native_kernels() -> None:
    x, weight, out = randn(3, 130), randn(130, seed=1), Act(poisoned(3, 130, dtype=torch.int8), poisoned(3, 1))
    add_norm(x, weight, 1e-6, out)
    assert relative_error(dequantize(out), norm64(x, weight, 1e-6)) < INT8_TOLERANCE


def test_int8_output_is_the_rounded_norm_of_each_token() -> None:
    x, weight, out = randn(7, 63, seed=1), randn(63, seed=2), poisoned_act(7, 63, torch.int8)
    x[3] = 0
    add_norm(x, weight, 1e-5, out)
    expected = norm64(x, weight, 1e-5)
    assert out.scale is not None
    assert torch.allclose(out.scale.double(), expected.abs().amax(-1, keepdim=True) / 127, rtol=1e-6)
    assert out.values[3].eq(0).all()
    assert out.scale[3] == 0
    # No element is further off than half a step.
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out)).all()
    assert relative_error(dequantize(out), expected) < INT8_TOLERANCE


def test_a_nan_stays_in_its_row_and_stays_visible_in_int8() -> None:
    x, weight, out = randn(3, 16), torch.ones(16), poisoned_act(3, 16, torch.int8)
    x[1, 5] = float("nan")
    add_norm(x, weight, 1e-5, out)
    assert dequantize(out).isnan().any(dim=-1).tolist() == [False, True, False]


def test_agrees_with_transformers() -> None:
    module = LlamaRMSNorm(63, eps=1e-5)
    module.weight.data = randn(63, seed=2)
    x, out = randn(9, 63), poisoned_act(9, 63)
    add_norm(x, module.weight.data, 1e-5, out)
    assert relative_error(out.values, module(x).detach()) < 1e-6


def test_rows_are_independent() -> None:
    x, weight = randn(33, 576), randn(576, seed=1)
    together, alone = poisoned_act(33, 576), poisoned_act(1, 576)
    add_norm(x, weight, 1e-5, together)
    for row in (0, 16, 32):
        add_norm(x[row : row + 1], weight, 1e-5, alone)
        assert torch.equal(together.values[row], alone.values[0])


def test_refuses_arguments_that_do_not_fit() -> None:
    x, weight = randn(3, 8), torch.ones(8)
    with pytest.raises(ValueError, match="add_norm: x has shape"):
        add_norm(x, torch.ones(9), 1e-5, poisoned_act(3, 8))
    with pytest.raises(ValueError, match="add_norm: out has shape"):
        add_norm(x, weight, 1e-5, poisoned_act(2, 8))
    with pytest.raises(ValueError, match=r"add_norm: out is torch.int8"):
        add_norm(x, weight, 1e-5, Act(poisoned(3, 8, dtype=torch.int8)))
    with pytest.raises(ValueError, match=r"add_norm: out.scale has shape \[2\]"):
        add_norm(x, weight, 1e-5, Act(poisoned(3, 8, dtype=torch.int8), poisoned(2)))
    with pytest.raises(ValueError, match=r"add_norm: residual is torch.bfloat16"):
        add_norm(x, weight, 1e-5, poisoned_act(3, 8), residual=poisoned(3, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("width", [63, 64, 65, 576, 1000])
def test_int8_output_has_a_scale_for_each_group(width: int) -> None:
    """An outlier costs its own group alone the fine steps."""
    x, out = randn(3, width, seed=1), poisoned_act(3, width, torch.int8)
    x[1, 0] = 1000.0
    add_norm(x, torch.ones(width), 1e-5, out)
    expected = norm64(x, torch.ones(width), 1e-5)
    groups = torch.nn.functional.pad(expected, (0, -width % ACT_GROUP)).unflatten(1, (-1, ACT_GROUP))
    assert out.scale is not None
    assert torch.allclose(out.scale.double(), groups.abs().amax(-1) / 127, rtol=1e-6)
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out)).all()
