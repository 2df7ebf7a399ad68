"""``norm_add_norm`` against a float64 formula, as plain torch and natively on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.norm_add_norm import norm_add_norm
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


def norm64(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def operands(
    tokens: int, width: int, dtype: torch.dtype, weight_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, its norm's weight, the stream and its norm's weight."""
    x, stream = 5 * randn(tokens, width, seed=1), randn(tokens, width, seed=2, dtype=dtype)
    return x.to(dtype), randn(width, seed=3, dtype=weight_dtype), stream, randn(width, seed=4, dtype=weight_dtype)


def check(
    tokens: int,
    width: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
    factor: float | None = None,
) -> None:
    x, x_weight, stream, weight = operands(tokens, width, dtype, weight_dtype)
    before, total = x.clone(), stream.double() + norm64(x, x_weight)
    out = poisoned_act(tokens, width, out_dtype or dtype)
    if factor is None:
        norm_add_norm(x, x_weight, stream, weight, 1e-6, out)
    else:
        total *= factor
        norm_add_norm(x, x_weight, stream, weight, 1e-6, out, factor=torch.tensor([factor]))
    assert torch.equal(x, before)
    if tokens:
        # Rounded once: half a unit in the last place.
        assert relative_error(stream, total) < {torch.float32: 2e-7, torch.float16: 3e-4}.get(dtype, 2.5e-3)
        assert relative_error(out.values, norm64(stream, weight)) < TOLERANCE[out_dtype or dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 17])
@pytest.mark.parametrize("width", [1, 7, 63, 640, 1000])
def test_norms_adds_and_norms(dtype: torch.dtype, weight_dtype: torch.dtype, tokens: int, width: int) -> None:
    check(tokens, width, dtype, weight_dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [7, 640])
def test_a_factor_on_the_sum(dtype: torch.dtype, width: int) -> None:
    check(5, width, dtype, torch.float32, factor=0.375)


def test_output_of_another_dtype() -> None:
    check(3, 63, torch.float32, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("width", [63, 130])
def test_int8_output_is_quantised_by_groups(width: int) -> None:
    x, x_weight, stream, weight = operands(7, width, torch.float32)
    out = poisoned_act(7, width, torch.int8)
    norm_add_norm(x, x_weight, stream, weight, 1e-6, out)
    expected = norm64(stream, weight)
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out)).all()
    assert relative_error(dequantize(out), expected) < INT8_TOLERANCE


def test_a_nan_stays_in_its_row_and_stays_visible_in_int8() -> None:
    x, x_weight, stream, weight = operands(3, 16, torch.float32)
    out = poisoned_act(3, 16, torch.int8)
    x[1, 5] = float("nan")
    norm_add_norm(x, x_weight, stream, weight, 1e-6, out)
    assert dequantize(out).isnan().any(dim=-1).tolist() == [False, True, False]


def test_rows_are_independent() -> None:
    x, x_weight, stream, weight = operands(33, 63, torch.float32)
    before, together, alone = stream.clone(), poisoned_act(33, 63), poisoned_act(1, 63)
    norm_add_norm(x, x_weight, stream, weight, 1e-6, together)
    for row in (0, 16, 32):
        norm_add_norm(x[row : row + 1], x_weight, before[row : row + 1], weight, 1e-6, alone)
        assert torch.equal(together.values[row], alone.values[0])
        assert torch.equal(before[row], stream[row])


def test_a_scale_a_token_is_not_for_native_kernels() -> None:
    dispatch.configure(dispatch.Mode.AUTO, 1)
    x, x_weight, stream, weight = operands(3, 130, torch.float32)
    out = Act(poisoned(3, 130, dtype=torch.int8), poisoned(3, 1))
    norm_add_norm(x, x_weight, stream, weight, 1e-6, out)
    assert relative_error(dequantize(out), norm64(stream, weight)) < INT8_TOLERANCE


def test_refuses_arguments_that_do_not_fit() -> None:
    x, x_weight, stream, weight = operands(3, 8, torch.float32)
    with pytest.raises(ValueError, match="norm_add_norm: x has shape"):
        norm_add_norm(x[:, :7], x_weight, stream, weight, 1e-6, poisoned_act(3, 8))
    with pytest.raises(ValueError, match="norm_add_norm: x_weight has shape"):
        norm_add_norm(x, x_weight[:7], stream, weight, 1e-6, poisoned_act(3, 8))
    with pytest.raises(ValueError, match=r"norm_add_norm: weight is torch.bfloat16"):
        norm_add_norm(x, x_weight, stream, weight.bfloat16(), 1e-6, poisoned_act(3, 8))
    with pytest.raises(ValueError, match=r"norm_add_norm: residual is torch.bfloat16"):
        norm_add_norm(x, x_weight, stream.bfloat16(), weight, 1e-6, poisoned_act(3, 8))
    with pytest.raises(ValueError, match=r"norm_add_norm: factor has shape \[2\]"):
        norm_add_norm(x, x_weight, stream, weight, 1e-6, poisoned_act(3, 8), factor=torch.ones(2))
    with pytest.raises(ValueError, match="norm_add_norm: out has shape"):
        norm_add_norm(x, x_weight, stream, weight, 1e-6, poisoned_act(2, 8))
