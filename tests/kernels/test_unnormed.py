"""``add_norm`` and ``norm_add_norm`` without the weight of the norm ahead of a sublayer, in every form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels.add_norm import add_norm
from app.kernels.norm_add_norm import norm_add_norm
from app.kernels.types import Act
from tests.kernels.delta import IMPLEMENTATIONS, running
from tests.kernels.util import dequantize, poisoned, poisoned_act, randn, relative_error, steps


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def int8_act(implementation: str, tokens: int, width: int) -> Act:
    """Of groups; on a GPU of tokens."""
    if implementation == "triton":
        return Act(poisoned(tokens, width, dtype=torch.int8), poisoned(tokens, 1))
    return poisoned_act(tokens, width, torch.int8)


def normed_sum(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    x = x.double()
    return residual.double() + x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()


SHAPES = pytest.mark.parametrize(("tokens", "width"), [(0, 5), (1, 1), (3, 63), (5, 640)])


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stream_comes_as_it_is_stored(implementation: str, dtype: torch.dtype, tokens: int, width: int) -> None:
    x, stream, weight = randn(tokens, width, dtype=dtype), randn(tokens, width, seed=1, dtype=dtype), randn(width)
    copied, added, behind = (poisoned_act(tokens, width, dtype) for _ in range(3))
    add_norm(stream, None, 0.0, copied)
    assert torch.equal(copied.values, stream)
    before, total = stream.clone(), (x.double() + stream.double()).to(dtype)
    add_norm(x, None, 0.0, added, residual=stream)
    assert torch.equal(stream, total)
    assert torch.equal(added.values, total)
    norm_add_norm(x, weight, before, None, 1e-6, behind)
    assert torch.equal(behind.values, before)
    if tokens:
        tolerance = 2e-7 if dtype is torch.float32 else 2.5e-3
        assert relative_error(before, normed_sum(x, weight, copied.values)) < tolerance


def test_int8_is_the_stream_rounded(implementation: str) -> None:
    x, stream, weight = randn(4, 130), randn(4, 130, seed=1), randn(130, seed=2)
    copied, added, behind = (int8_act(implementation, 4, 130) for _ in range(3))
    add_norm(stream, None, 0.0, copied)
    assert ((dequantize(copied) - stream).abs() <= 0.5001 * steps(copied)).all()
    norm_add_norm(x, weight, stream, None, 1e-6, behind)
    assert ((dequantize(behind) - stream).abs() <= 0.5001 * steps(behind)).all()
    add_norm(x, None, 0.0, added, residual=stream)
    assert ((dequantize(added) - stream).abs() <= 0.5001 * steps(added)).all()
