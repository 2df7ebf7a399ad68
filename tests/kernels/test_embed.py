from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from app.kernels.embed import embed
from app.kernels.embed.reference import embed_reference
from tests.kernels.util import poisoned, randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 63])
def test_copies_the_row_of_each_token(dtype: torch.dtype, tokens: int) -> None:
    table = randn(1000, 63, dtype=dtype)
    ids = torch.randint(0, 1000, (tokens,))
    out = poisoned(tokens, 63, dtype=dtype)
    embed(ids, table, out)
    assert out.tolist() == [table[i].tolist() for i in ids.tolist()]


@pytest.mark.parametrize("op", [embed, embed_reference])
@pytest.mark.parametrize(("table_dtype", "dtype"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_tokens_of_other_slices_give_zeros(
    op: Callable[..., None], table_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    table, out = randn(10, 63, dtype=table_dtype), poisoned(6, 63, dtype=dtype)
    op(torch.tensor([19, 20, 25, 29, 30, 0]), table, out, first=20)
    assert out[1:4].equal(table[[0, 5, 9]].to(dtype))
    assert out[[0, 4, 5]].eq(0).all()


@pytest.mark.parametrize(
    ("ids", "out", "message"),
    [
        (torch.zeros(2, dtype=torch.int32), torch.empty(2, 4), "embed: token_ids is torch.int32"),
        (torch.zeros(2, dtype=torch.int64), torch.empty(3, 4), r"embed: out has shape \[3, 4\], expected \[2, 4\]"),
        (torch.zeros(2, dtype=torch.int64), torch.empty(2, 4, dtype=torch.bfloat16), "embed: out is torch.bfloat16"),
        (torch.zeros(2, dtype=torch.int64), torch.empty(4, 2).t(), "embed: out is not contiguous"),
    ],
)
def test_refuses_arguments_that_do_not_fit(ids: torch.Tensor, out: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(ids, torch.zeros(5, 4), out)
