"""``layer_norm`` in Triton against a float64 formula."""

from __future__ import annotations

import pytest
import torch

from app.kernels.layer_norm import layer_norm
from app.kernels.types import Act
from tests.kernels.test_layer_norm import norm64, weights
from tests.kernels.util import INT8_TOLERANCE, TOLERANCE, dequantize, poisoned, poisoned_act, randn, relative_error

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (5, 576), (2, 1000)])
def test_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, (weight, bias), out = randn(*shape, dtype=dtype), weights(shape[1], dtype), poisoned_act(*shape, dtype)
    layer_norm(x, weight, bias, 1e-5, out)
    assert relative_error(out.values, norm64(x, weight, bias)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_residual_stream_is_rounded_once_and_normed_as_stored(dtype: torch.dtype) -> None:
    x, stream, (weight, bias) = randn(4, 63, dtype=dtype), randn(4, 63, seed=1, dtype=dtype), weights(63, dtype)
    expected, out = (x.double() + stream.double()).to(dtype), poisoned_act(4, 63, dtype)
    layer_norm(x, weight, bias, 1e-5, out, residual=stream)
    assert torch.equal(stream, expected)
    assert relative_error(out.values, norm64(expected, weight, bias)) <= TOLERANCE[dtype]


def test_without_a_bias() -> None:
    x, weight, out = randn(4, 63), weights(63)[0], poisoned_act(4, 63)
    layer_norm(x, weight, None, 1e-5, out)
    assert relative_error(out.values, norm64(x, weight, None)) <= TOLERANCE[torch.float32]


def test_int8_has_a_scale_a_token() -> None:
    x, (weight, bias) = randn(4, 200) * torch.tensor([1.0, 100.0, 0.0, 1e-3])[:, None], weights(200)
    out = Act(poisoned(4, 200, dtype=torch.int8), poisoned(4, 1))
    layer_norm(x, weight, bias, 1e-5, out)
    expected = norm64(x, weight, bias)
    assert relative_error(dequantize(out), expected) <= INT8_TOLERANCE
    assert out.scale is not None
    assert torch.allclose(out.scale[:, 0].double(), expected.abs().amax(-1) / 127, rtol=1e-5)


def test_rows_do_not_see_each_other() -> None:
    x, (weight, bias) = randn(5, 96), weights(96)
    whole, alone = poisoned_act(5, 96), poisoned_act(1, 96)
    layer_norm(x, weight, bias, 1e-5, whole)
    layer_norm(x[3:4], weight, bias, 1e-5, alone)
    assert torch.equal(whole.values[3:4], alone.values)


def test_scales_of_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="by tokens"):
        layer_norm(randn(2, 128), *weights(128), 1e-6, poisoned_act(2, 128, torch.int8))
