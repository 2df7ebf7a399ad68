"""``head_linear`` in every form against float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from app.kernels.head_linear import head_linear
from tests.kernels.delta import IMPLEMENTATIONS, cases, running
from tests.kernels.util import TOLERANCE, poisoned, randn, relative_error

SHAPES = [(1, 1, 1), (3, 16, 70), (2, 37, 300), (4, 128, 512)]
"""Heads, inputs and outputs of each."""
DTYPES = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
"""Of tokens and of weights."""
INTERPRETED = [
    (0, SHAPES[1], DTYPES[0]),
    (1, SHAPES[0], DTYPES[1]),
    (3, SHAPES[1], DTYPES[2]),
    (9, SHAPES[1], DTYPES[0]),
    (17, (2, 37, 70), DTYPES[0]),
    (17, (1, 70, 130), DTYPES[1]),
    (17, (2, 70, 130), DTYPES[2]),
]
"""Within a block and across several, of tokens, inputs and outputs."""


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


@cases("tokens, shape, dtypes", itertools.product([0, 1, 3, 9], SHAPES, DTYPES), INTERPRETED)
def test_against_fp64(
    implementation: str, tokens: int, shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    (heads, k, n), (dtype, weight_dtype) = shape, dtypes
    x, out = randn(tokens, heads, k + 3, seed=1, dtype=dtype), poisoned(tokens, heads, n + 2, dtype=dtype)
    weight = randn(heads, k, n, seed=2, dtype=weight_dtype)
    head_linear(x[..., 3:], weight, out[..., :n])
    if tokens:
        expected = torch.einsum("thk,hkn->thn", x[..., 3:].double(), weight.double())
        assert relative_error(out[..., :n], expected) < TOLERANCE[dtype]
        assert out[..., n:].isnan().all()


def test_a_token_does_not_see_the_others(implementation: str) -> None:
    x, weight = randn(9, 2, 64, seed=1), randn(2, 64, 100, seed=2)
    whole, alone = poisoned(9, 2, 100), poisoned(1, 2, 100)
    head_linear(x, weight, whole)
    head_linear(x[4:5], weight, alone)
    if implementation == "reference":  # torch's product of several rows may sum in another order
        torch.testing.assert_close(whole[4:5], alone)
    else:
        assert torch.equal(whole[4:5], alone)


def test_arguments_are_checked(implementation: str) -> None:
    x, weight = randn(2, 3, 16), randn(3, 16, 8)
    with pytest.raises(ValueError, match="out has shape"):
        head_linear(x, weight, torch.empty(2, 3, 9))
    with pytest.raises(ValueError, match="weight has shape"):
        head_linear(x, randn(3, 17, 8), torch.empty(2, 3, 8))
    with pytest.raises(ValueError, match="the vectors of x are not contiguous"):
        head_linear(randn(2, 3, 32)[..., ::2], weight, torch.empty(2, 3, 8))
