"""``quantize``: the values of the specification in ``int8``, natively and in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from app.kernels import dispatch
from app.kernels.int8 import quantize_groups, quantize_tokens
from app.kernels.quantize import quantize
from app.kernels.types import Act, num_groups
from tests.kernels.util import dequantize, poisoned, randn, steps


@pytest.fixture(autouse=True, params=[dispatch.Mode.AUTO, dispatch.Mode.REFERENCE])
def mode(request: pytest.FixtureRequest) -> Iterator[dispatch.Mode]:
    dispatch.configure(request.param, 1)
    yield request.param
    dispatch.configure(dispatch.Mode.AUTO, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 63), (5, 576), (2, 1000)])
def test_every_value_is_the_nearest_of_its_scale(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = randn(*shape, dtype=dtype)
    for scales, specification in ((num_groups(shape[1]), quantize_groups), (1, quantize_tokens)):
        out = Act(poisoned(*shape, dtype=torch.int8), poisoned(shape[0], scales))
        quantize(x, out)
        assert out.scale is not None
        torch.testing.assert_close(out.scale, specification(x)[1])
        # Natively it is a product with the inverse: what lies half way may go either way.
        assert ((dequantize(out) - x).abs() <= 0.5001 * steps(out)).all()


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (randn(3, 8), Act(torch.empty(3, 8)), "no scale"),
        (randn(3, 8), Act(torch.empty(2, 8, dtype=torch.int8), torch.empty(2, 1)), "out"),
        (torch.ones(3, 8, dtype=torch.int8), Act(torch.empty(3, 8, dtype=torch.int8), torch.empty(3, 1)), "x"),
    ],
)
def test_arguments_that_do_not_fit(x: torch.Tensor, out: Act, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(x, out)
