"""``scale_logits`` in every form against a float64 formula."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels.scale_logits import scale_logits
from tests.kernels.delta import IMPLEMENTATIONS, running
from tests.kernels.util import randn, relative_error


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def scaled64(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    y = logits.double() * scale
    return y if softcap is None else softcap * (y / softcap).tanh()


@pytest.mark.parametrize(("scale", "softcap"), [(0.0625, None), (1.0, 30.0), (2.5, 9.0)])
@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("vocab_size", [1, 63, 9001])
def test_against_fp64(implementation: str, scale: float, softcap: float | None, rows: int, vocab_size: int) -> None:
    logits = randn(rows, vocab_size) * 20
    expected = scaled64(logits, scale, softcap)
    scale_logits(logits, scale=scale, softcap=softcap)
    if rows:
        assert relative_error(logits, expected) < 1e-6


def test_what_is_far_out_meets_the_cap_and_nan_stays(implementation: str) -> None:
    logits = torch.tensor([[-1e30, -1e4, 0.0, 1e4, 1e30, float("nan")]])
    if implementation == "triton":
        logits = logits.clamp(-60, 60)  # numpy, which interprets, warns of what overflows
    scale_logits(logits, softcap=1.5)
    torch.testing.assert_close(logits, torch.tensor([[-1.5, -1.5, 0.0, 1.5, 1.5, float("nan")]]), equal_nan=True)


def test_nothing_beyond_the_rows_is_touched(implementation: str) -> None:
    memory = randn(3, 8193)
    before = memory.clone()
    scale_logits(memory[1:2], scale=2.0)
    assert torch.equal(memory[[0, 2]], before[[0, 2]])
    assert torch.equal(memory[1], before[1] * 2)


def test_refuses_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"logits is torch\.bfloat16"):
        scale_logits(randn(2, 8, dtype=torch.bfloat16), scale=2.0)
    with pytest.raises(ValueError, match="softcap is 0"):
        scale_logits(randn(2, 8), softcap=0.0)
    with pytest.raises(ValueError, match="contiguous"):
        scale_logits(randn(8, 2).t(), scale=2.0)
