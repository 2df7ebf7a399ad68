"""``add_norm`` in Triton against a float64 formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.kernels.add_norm import add_norm
from app.kernels.types import Act
from tests.kernels.util import INT8_TOLERANCE, TOLERANCE, dequantize, poisoned, poisoned_act, randn, relative_error

pytestmark = pytest.mark.usefixtures("interpreted")


def exact(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    x = x_TD.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (5, 576), (2, 1000)])
def test_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight, out = randn(*shape, dtype=dtype), randn(shape[1], seed=1, dtype=dtype), poisoned_act(*shape, dtype)
    add_norm(x, weight, 1e-5, out)
    assert relative_error(out.values, exact(x, weight, 1e-5)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_residual_stream_is_rounded_once_and_normed_as_stored(dtype: torch.dtype) -> None:
    x, stream, weight = randn(4, 63, dtype=dtype), randn(4, 63, seed=1, dtype=dtype), randn(63, seed=2, dtype=dtype)
    expected, out = (x.double() + stream.double()).to(dtype), poisoned_act(4, 63, dtype)
    add_norm(x, weight, 1e-6, out, residual=stream)
    assert torch.equal(stream, expected)
    assert relative_error(out.values, exact(expected, weight, 1e-6)) <= TOLERANCE[dtype]


def test_int8_has_a_scale_a_token() -> None:
    x, weight = randn(4, 200) * torch.tensor([1.0, 100.0, 0.0, 1e-3])[:, None], randn(200, seed=1)
    out = Act(poisoned(4, 200, dtype=torch.int8), poisoned(4, 1))
    add_norm(x, weight, 1e-6, out)
    expected = exact(x, weight, 1e-6)
    assert relative_error(dequantize(out), expected) <= INT8_TOLERANCE
    assert out.scale is not None
    assert torch.allclose(out.scale[:, 0].double(), expected.abs().amax(-1) / 127, rtol=1e-6)
    assert not out.values[2].any()


def test_rows_do_not_see_each_other() -> None:
    x, weight = randn(5, 96), randn(96, seed=1)
    whole, alone = poisoned_act(5, 96), poisoned_act(1, 96)
    add_norm(x, weight, 1e-6, whole)
    add_norm(x[3:4], weight, 1e-6, alone)
    assert torch.equal(whole.values[3:4], alone.values)


def test_scales_of_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="by tokens"):
        add_norm(randn(2, 128), randn(128), 1e-6, poisoned_act(2, 128, torch.int8))
