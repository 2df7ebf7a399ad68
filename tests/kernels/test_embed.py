from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from app.kernels.embed import embed
from app.kernels.embed.reference import embed_reference
from tests.kernels.util import poisoned, randn, relative_error


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


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    ("table_dtype", "dtype", "rounded"),
    [
        (torch.float32, torch.float32, 640**0.5),
        (torch.bfloat16, torch.bfloat16, 25.25),
        (torch.bfloat16, torch.float32, 25.25),
    ],
)
@pytest.mark.parametrize("width", [1, 63, 640])
def test_the_scale_is_rounded_to_the_tables_dtype(
    table_dtype: torch.dtype, dtype: torch.dtype, rounded: float, width: int
) -> None:
    table, ids, out = randn(10, width, dtype=table_dtype), torch.tensor([3, 9, 0]), poisoned(3, width, dtype=dtype)
    embed(ids, table, out, scale=640**0.5)
    assert out.equal((table[ids].double() * torch.tensor(rounded, dtype=table_dtype).double()).to(dtype))


def test_scales_as_gemma_does() -> None:
    module = Gemma3TextScaledWordEmbedding(10, 63, padding_idx=0, embed_scale=640**0.5).bfloat16()
    ids, out = torch.tensor([3, 9, 1]), poisoned(3, 63, dtype=torch.bfloat16)
    embed(ids, module.weight.data, out, scale=640**0.5)
    assert out.equal(module(ids))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    ("table_dtype", "dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("width", [1, 63, 768])
def test_adds_learned_positions(table_dtype: torch.dtype, dtype: torch.dtype, scale: float, width: int) -> None:
    table, learned = randn(10, width, dtype=table_dtype), randn(20, width, seed=1, dtype=table_dtype)
    ids, positions = torch.tensor([3, 9, 0, 3]), torch.tensor([0, 19, 7, 7])
    out = poisoned(4, width, dtype=dtype)
    embed(ids, table, out, scale=scale, positions_T=positions, position_table_PD=learned)
    expected = table[ids].double() * scale + learned[positions].double()
    assert relative_error(out, expected) < (1e-7 if dtype == torch.float32 else 2.5e-3)


@pytest.mark.usefixtures("form")
def test_of_other_slices_there_is_no_position_either() -> None:
    """So that the sum over ranks has each position once."""
    table, learned = randn(10, 63), randn(5, 63, seed=1)
    ids, positions, total = torch.tensor([4, 5, 9]), torch.tensor([1, 4, 0]), torch.zeros(3, 63)
    for first in (0, 5):
        out = poisoned(3, 63)
        part = table[first : first + 5]
        embed(ids, part, out, first=first, scale=2.0, positions_T=positions, position_table_PD=learned)
        total += out
    whole = poisoned(3, 63)
    embed(ids, table, whole, scale=2.0, positions_T=positions, position_table_PD=learned)
    assert total.equal(whole)


def test_refuses_positions_that_do_not_fit() -> None:
    ids, table, out, learned = torch.zeros(2, dtype=torch.int64), torch.zeros(5, 4), torch.empty(2, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match="embed: positions and position_table come together"):
        embed(ids, table, out, positions_T=ids)
    with pytest.raises(ValueError, match=r"embed: positions has shape \[1\], expected \[2\]"):
        embed(ids, table, out, positions_T=ids[:1], position_table_PD=learned)
    with pytest.raises(ValueError, match=r"embed: position_table has shape \[3, 3\], expected \[3, 4\]"):
        embed(ids, table, out, positions_T=ids, position_table_PD=torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"embed: position_table is torch.bfloat16, expected torch.float32"):
        embed(ids, table, out, positions_T=ids, position_table_PD=learned.bfloat16())


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
