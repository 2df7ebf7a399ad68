"""``embed`` in Triton: the table's rows, scaled and with positions."""

from __future__ import annotations

import pytest
import torch

from app.kernels.embed import embed
from tests.kernels.util import TOLERANCE, poisoned, randn, relative_error

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize(
    ("table_dtype", "dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("width", [1, 63, 1000])
@pytest.mark.parametrize("token_ids", [[], [6], [0, 5, 5, 2]])
def test_rows_of_the_table(token_ids: list[int], width: int, table_dtype: torch.dtype, dtype: torch.dtype) -> None:
    table, out = randn(7, width, dtype=table_dtype), poisoned(len(token_ids), width, dtype=dtype)
    ids = torch.tensor(token_ids, dtype=torch.int64)
    embed(ids, table, out)
    assert out.equal(table[ids].to(dtype))


def test_tokens_of_other_slices_give_zeros() -> None:
    table, out = randn(5, 63), poisoned(4, 63)
    embed(torch.tensor([15, 16, 20, 21]), table, out, first=16)
    assert out.equal(torch.stack([torch.zeros(63), table[0], table[4], torch.zeros(63)]))


FLOATS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
]


@pytest.mark.parametrize(("table_dtype", "dtype"), FLOATS)
def test_the_scale_is_rounded_to_the_tables_dtype(table_dtype: torch.dtype, dtype: torch.dtype) -> None:
    table, out, ids = randn(7, 63, dtype=table_dtype), poisoned(3, 63, dtype=dtype), torch.tensor([6, 0, 2])
    embed(ids, table, out, scale=640**0.5)
    rounded = torch.tensor(640**0.5, dtype=table_dtype)
    assert out.equal((table[ids].double() * rounded.double()).to(dtype))


@pytest.mark.parametrize(("table_dtype", "dtype"), FLOATS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_adds_learned_positions(scale: float, table_dtype: torch.dtype, dtype: torch.dtype) -> None:
    table, learned = randn(7, 63, dtype=table_dtype), randn(9, 63, seed=1, dtype=table_dtype)
    ids, positions, out = torch.tensor([6, 0, 6]), torch.tensor([8, 0, 1]), poisoned(3, 63, dtype=dtype)
    embed(ids, table, out, scale=scale, positions_T=positions, position_table_PD=learned)
    expected = table[ids].double() * scale + learned[positions].double()
    assert relative_error(out, expected) < TOLERANCE[dtype] / 2


def test_of_other_slices_there_is_no_position_either() -> None:
    table, learned, out, ids = randn(5, 63), randn(9, 63, seed=1), poisoned(2, 63), torch.tensor([15, 16])
    embed(ids, table, out, first=16, positions_T=ids - 10, position_table_PD=learned)
    assert out[0].eq(0).all()
    assert out[1].equal(table[0] + learned[6])
