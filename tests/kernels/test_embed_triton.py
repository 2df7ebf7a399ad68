"""``embed`` in Triton: the table's rows."""

from __future__ import annotations

import pytest
import torch

from app.kernels.embed import embed
from tests.kernels.util import poisoned, randn

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
