"""``quantize`` in Triton: the very values of the reference."""

from __future__ import annotations

import pytest
import torch

from app.kernels.int8 import quantize_tokens
from app.kernels.types import Act
from tests.kernels.util import poisoned, randn

pytestmark = pytest.mark.usefixtures("interpreted")


def quantized(x: torch.Tensor, indices: torch.Tensor | None = None) -> Act:
    from app.kernels.quantize.triton import quantize_triton

    rows = x.shape[0] if indices is None else indices.numel()
    out = Act(poisoned(rows, x.shape[1], dtype=torch.int8), poisoned(rows, 1))
    quantize_triton(x, out, indices)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 63), (5, 576), (2, 1000)])
def test_agrees_with_the_reference_bit_for_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = randn(*shape, dtype=dtype)
    out, (values, scale) = quantized(x), quantize_tokens(x)
    assert out.values.equal(values)
    assert out.scale is not None
    assert out.scale.equal(scale)


def test_rounds_half_to_even() -> None:
    out = quantized(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0]]))
    assert out.values.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert out.scale is not None
    assert out.scale.tolist() == [[1.0], [0.0]]


def test_rows_have_scales_of_their_own() -> None:
    x = randn(4, 200) * torch.tensor([1.0, 100.0, 1e-3, 5.0])[:, None]
    whole, alone = quantized(x), quantized(x[2:3])
    assert whole.values[2:3].equal(alone.values)
    assert whole.scale is not None
    assert alone.scale is not None
    assert whole.scale[2:3].equal(alone.scale)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("value", [torch.inf, torch.nan, -torch.nan])
def test_what_is_not_finite_stays_visible_in_its_row(value: float) -> None:
    x = randn(2, 63)
    x[1, 5] = value
    out = quantized(x)
    assert out.scale is not None
    assert out.scale.isfinite().squeeze(1).tolist() == [True, False]


def test_takes_the_rows_that_are_named() -> None:
    x = randn(5, 96)
    indices = torch.tensor([4, 0, 4])
    out, (values, scale) = quantized(x, indices), quantize_tokens(x[indices])
    assert out.values.equal(values)
    assert out.scale is not None
    assert out.scale.equal(scale)
