"""``layer_norm`` against a float64 formula, as plain torch and natively on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.layer_norm import layer_norm
from app.kernels.types import Act
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

pytestmark = pytest.mark.usefixtures("form")
WIDTHS = [1, 7, 63, 576, 1000]


def norm64(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    x = x.double()
    x = x - x.mean(-1, keepdim=True)
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    return normed if bias is None else normed + bias.double()


def weights(width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return randn(width, seed=2, dtype=dtype), randn(width, seed=3, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 17])
@pytest.mark.parametrize("width", WIDTHS)
def test_norm_alone(dtype: torch.dtype, weight_dtype: torch.dtype, tokens: int, width: int) -> None:
    x, (weight, bias) = randn(tokens, width, seed=1, dtype=dtype), weights(width, weight_dtype)
    before, out = x.clone(), poisoned_act(tokens, width, dtype)
    layer_norm(x, weight, bias, 1e-5, out)
    assert torch.equal(x, before)
    if tokens:
        assert relative_error(out.values, norm64(x, weight, bias)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_adds_into_the_residual_and_norms_the_sum(dtype: torch.dtype, width: int) -> None:
    x, residual = randn(5, width, seed=1, dtype=dtype), randn(5, width, seed=2, dtype=dtype)
    (weight, bias), out = weights(width), poisoned_act(5, width, dtype)
    total = (x.double() + residual.double()).to(dtype)
    layer_norm(x, weight, bias, 1e-5, out, residual=residual)
    assert torch.equal(residual, total)
    assert relative_error(out.values, norm64(total, weight, bias)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [63, 576])
def test_without_a_bias(dtype: torch.dtype, width: int) -> None:
    x, residual, weight = randn(5, width, seed=1, dtype=dtype), randn(5, width, seed=2, dtype=dtype), weights(width)[0]
    total, out = (x.double() + residual.double()).to(dtype), poisoned_act(5, width, dtype)
    layer_norm(x, weight, None, 1e-5, out, residual=residual)
    assert torch.equal(residual, total)
    assert relative_error(out.values, norm64(total, weight, None)) < TOLERANCE[dtype]


def test_a_large_mean_costs_no_digits() -> None:
    """Of the variance: in one pass of fp32 a mean of a thousand deviations would."""
    x, (weight, bias), out = randn(3, 576) + 1000, weights(576), poisoned_act(3, 576)
    layer_norm(x, weight, bias, 1e-5, out)
    assert relative_error(out.values, norm64(x, weight, bias)) < 1e-4


@pytest.mark.parametrize("width", [63, 130])
def test_int8_output_is_quantised_by_groups(width: int) -> None:
    x, (weight, bias), out = randn(7, width, seed=1), weights(width), poisoned_act(7, width, torch.int8)
    layer_norm(x, weight, bias, 1e-5, out)
    expected = norm64(x, weight, bias)
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out)).all()
    assert relative_error(dequantize(out), expected) < INT8_TOLERANCE


def test_a_nan_stays_in_its_row_and_stays_visible_in_int8() -> None:
    x, (weight, bias), out = randn(3, 16), weights(16), poisoned_act(3, 16, torch.int8)
    x[1, 5] = float("nan")
    layer_norm(x, weight, bias, 1e-5, out)
    assert dequantize(out).isnan().any(dim=-1).tolist() == [False, True, False]


def test_rows_are_independent() -> None:
    x, (weight, bias) = randn(33, 63), weights(63)
    together, alone = poisoned_act(33, 63), poisoned_act(1, 63)
    layer_norm(x, weight, bias, 1e-5, together)
    for row in (0, 16, 32):
        layer_norm(x[row : row + 1], weight, bias, 1e-5, alone)
        assert torch.equal(together.values[row], alone.values[0])


def test_the_output_may_be_the_input() -> None:
    x, (weight, bias) = randn(3, 63), weights(63)
    expected = norm64(x, weight, bias)
    layer_norm(x, weight, bias, 1e-5, Act(x))
    assert relative_error(x, expected) < TOLERANCE[torch.float32]


def test_a_scale_a_token_is_not_for_native_kernels() -> None:
    dispatch.configure(dispatch.Mode.AUTO, 1)
    x, (weight, bias), out = randn(3, 130), weights(130), Act(poisoned(3, 130, dtype=torch.int8), poisoned(3, 1))
    layer_norm(x, weight, bias, 1e-5, out)
    assert relative_error(dequantize(out), norm64(x, weight, bias)) < INT8_TOLERANCE


def test_refuses_arguments_that_do_not_fit() -> None:
    x, (weight, bias) = randn(3, 8), weights(8)
    with pytest.raises(ValueError, match="layer_norm: x has shape"):
        layer_norm(x, *weights(9), 1e-5, poisoned_act(3, 8))
    with pytest.raises(ValueError, match="layer_norm: bias has shape"):
        layer_norm(x, weight, bias[:7], 1e-5, poisoned_act(3, 8))
    with pytest.raises(ValueError, match=r"layer_norm: bias is torch.bfloat16"):
        layer_norm(x, weight, bias.bfloat16(), 1e-5, poisoned_act(3, 8))
    with pytest.raises(ValueError, match="layer_norm: out has shape"):
        layer_norm(x, weight, bias, 1e-5, poisoned_act(2, 8))
    with pytest.raises(ValueError, match=r"layer_norm: residual is torch.bfloat16"):
        layer_norm(x, weight, bias, 1e-5, poisoned_act(3, 8), residual=poisoned(3, 8, dtype=torch.bfloat16))
