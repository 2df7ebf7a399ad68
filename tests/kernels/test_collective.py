"""What ranks do together, between threads of this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.collective import ONE_RANK, Ranks, all_reduce, gather_columns
from tests.kernels.util import poisoned
from tests.runner.ranks import on_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3), (63, 17)])
def test_sums_are_everybodys(shape: tuple[int, int], dtype: torch.dtype, tmp_path: Path) -> None:
    given = torch.randn(3, *shape).to(dtype)

    def reduce(ranks: Ranks) -> Tensor:
        values = given[ranks.rank].clone()
        all_reduce(values, ranks)
        return values

    first, *others = on_ranks(3, tmp_path / "meeting", reduce)
    torch.testing.assert_close(first, given.float().sum(0).to(dtype), rtol=2e-2, atol=2e-2)
    assert all(other.equal(first) for other in others)


@pytest.mark.parametrize(("rows", "columns"), [(1, 12), (5, 12), (5, 10), (2, 9)])
def test_parts_stand_side_by_side(rows: int, columns: int, tmp_path: Path) -> None:
    whole = torch.arange(float(rows * 12)).view(rows, 12)

    def gather(ranks: Ranks) -> Tensor:
        parts, out = poisoned(3, rows, 4), poisoned(rows, columns)
        parts[ranks.rank] = whole[:, 4 * ranks.rank : 4 * ranks.rank + 4]
        gather_columns(parts, out, ranks)
        return out

    assert all(out.equal(whole[:, :columns]) for out in on_ranks(3, tmp_path / "meeting", gather))


@pytest.mark.parametrize(
    ("parts", "out", "message"),
    [
        (torch.empty(2, 5, 4), torch.empty(5, 4), r"parts has shape \[2, 5, 4\], expected \[1, 5, 4\]"),
        (torch.empty(1, 5, 4), torch.empty(4, 4), r"out has shape \[4, 4\], expected \[5, 4\]"),
        (torch.empty(1, 5, 4), torch.empty(5, 5), "out has 5 columns, 1 ranks have 4 each"),
    ],
)
def test_refuses_arguments_that_do_not_fit(parts: Tensor, out: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_columns(parts, out, ONE_RANK)


def test_a_recording_cannot_hold_a_meeting() -> None:
    with dispatch.recording(), pytest.raises(dispatch.FallbackError, match="ranks meet"):
        all_reduce(torch.zeros(1, 2), ONE_RANK)


def test_an_unconnected_rank_says_so() -> None:
    with pytest.raises(RuntimeError, match="rank 1 of 2 is not connected"):
        all_reduce(torch.zeros(1, 2), Ranks(1, 2))
