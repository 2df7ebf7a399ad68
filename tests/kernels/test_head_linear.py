"""``head_linear`` in every form against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from app.kernels.head_linear import head_linear
from tests.kernels.delta import IMPLEMENTATIONS, running
from tests.kernels.util import TOLERANCE, poisoned, randn, relative_error

SHAPES = [(1, 1, 1), (3, 16, 70), (2, 37, 300), (4, 128, 512)]
"""Heads, inputs and outputs of each."""


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize("tokens", [0, 1, 3, 9])
@pytest.mark.parametrize(("heads", "k", "n"), SHAPES)
def test_against_fp64(
    implementation: str, dtype: torch.dtype, weight_dtype: torch.dtype, tokens: int, heads: int, k: int, n: int
) -> None:
    x, out = randn(tokens, heads, k + 3, seed=1, dtype=dtype), poisoned(tokens, heads, n + 2, dtype=dtype)
    weight = randn(heads, k, n, seed=2, dtype=weight_dtype)
    head_linear(x[..., 3:], weight, out[..., :n])
    if tokens:
        expected = torch.einsum("thk,hkn->thn", x[..., 3:].double(), weight.double())
        assert relative_error(out[..., :n], expected) < TOLERANCE[dtype]
        assert out[..., n:].isnan().all()


def test_a_token_does_not_see_the_others(implementation: str) -> None:
    x, weight = randn(9, 2, 64, seed=1), randn(2, 64, 300, seed=2)
    whole, alone = poisoned(9, 2, 300), poisoned(1, 2, 300)
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
