"""Attention over packed pages: the native kernels, on every instruction set of the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.dispatch import Mode
from app.kernels.native.library import NativeError, best_isa
from app.kernels.paged_attention import paged_attention
from app.kernels.types import LayerKVCache
from tests.kernels.test_paged_attention import CAPS_AND_SINKS, SCALE, attend, attend64, some_sinks
from tests.kernels.util import (
    Pages,
    dequantize,
    make_pages,
    packed,
    poisoned,
    poisoned_act,
    randn,
    relative_error,
    steps,
)

try:
    _ISAS = ["avx2", "avx512", "avx512_bf16"]
    ISAS = _ISAS[: _ISAS.index(best_isa()) + 1]
except NativeError:
    pytest.skip("no native kernels here", allow_module_level=True)

LENGTHS = [1, 15, 16, 17, 255, 256, 257, 1000]


@pytest.fixture(autouse=True, params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = dispatch._state.mode, dispatch._state.threads, dispatch._state.isa
    dispatch.configure(Mode.AUTO, 2, isa=request.param)
    yield request.param
    dispatch.configure(*before)


def pack(pages: Pages) -> Pages:
    return Pages(packed(pages.kv), pages.block_tables, pages.keys, pages.values)


def until(pages: Pages, end: int, row: int = 0) -> Pages:
    """One row as it stood at ``end`` tokens."""
    table = pages.block_tables[row : row + 1]
    return Pages(pages.kv, table, [pages.keys[row][:end]], [pages.values[row][:end]])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(9, 3, 64), (32, 8, 128), (8, 8, 80), (6, 1, 96), (4, 1, 256), (2, 1, 512)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("window", [None, 21])
def test_against_fp64(heads: int, kv_heads: int, width: int, dtype: torch.dtype, window: int | None) -> None:
    query_lens = [1, 3, 16, 1, 20, 1, 5, 1]
    pages = make_pages(LENGTHS, kv_heads=kv_heads, head_dim=width, dtype=dtype)
    q = randn(sum(query_lens), heads, width, dtype=torch.bfloat16)
    expected = attend64(q, pages, query_lens, window)
    mine = pack(pages)
    actual = attend(q, mine.kv, mine.metadata(query_lens), window)
    assert relative_error(actual, expected) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize(("softcap", "sunk"), CAPS_AND_SINKS)
def test_capped_scores_and_sinks(dtype: torch.dtype, window: int | None, softcap: float | None, sunk: bool) -> None:
    query_lens = [1, 3, 16, 1, 20, 1, 5, 1]
    pages = make_pages(LENGTHS, dtype=dtype)
    q, sinks = randn(sum(query_lens), 9, 64, dtype=torch.bfloat16), some_sinks(9) if sunk else None
    expected = attend64(q, pages, query_lens, window, softcap, sinks)
    mine = pack(pages)
    actual = attend(q, mine.kv, mine.metadata(query_lens), window, softcap, sinks)
    assert relative_error(actual, expected) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_capped_scores_and_sinks_of_any_cut_are_the_same_bits(dtype: torch.dtype) -> None:
    pages, q, sinks = pack(make_pages([290], dtype=dtype)), randn(290, 9, 64), some_sinks(9)
    whole, end = attend(q, pages.kv, pages.metadata([290]), None, 3.0, sinks), 0
    for chunk in [1, 14, 241, 1, 1, 32]:
        end += chunk
        seen = until(pages, end)
        piece = attend(q[end - chunk : end], pages.kv, seen.metadata([chunk]), None, 3.0, sinks)
        assert torch.equal(piece, whole[end - chunk : end])


def test_a_nan_shows_through_a_cap() -> None:
    pages = make_pages([20, 21], dtype=torch.bfloat16)
    pages.kv.values[int(pages.block_tables[1, 0]), 0, :, 3] = float("nan")
    actual = attend(randn(2, 9, 64), packed(pages.kv), pages.metadata([1, 1]), None, 2.0, some_sinks(9))
    assert actual.isnan().any(dim=-1).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("window", [None, 1, 40, 300])
def test_any_cut_of_a_prompt_gives_the_same_bits(dtype: torch.dtype, window: int | None) -> None:
    pages = pack(make_pages([530], dtype=dtype))
    q = randn(530, 9, 64)
    whole = attend(q, pages.kv, pages.metadata([530]), window)
    assert not whole.isnan().any()
    end = 0
    for chunk in [1, 14, 1, 16, 223, 1, 1, 1, 200, 1, 71]:
        end += chunk
        seen = until(pages, end)
        piece = attend(q[end - chunk : end], pages.kv, seen.metadata([chunk]), window)
        assert torch.equal(piece, whole[end - chunk : end])


@pytest.mark.parametrize("query_len", [1, 9])
def test_neighbours_do_not_change_a_row(query_len: int) -> None:
    lens = [33, 9, 64, 700, 290]
    pages, q = pack(make_pages(lens, dtype=torch.bfloat16)), randn(len(lens) * query_len, 9, 64)
    together = attend(q, pages.kv, pages.metadata([query_len] * len(lens))).split(query_len)
    for row, length in enumerate(lens):
        alone = until(pages, length, row)
        mine = attend(q[row * query_len : (row + 1) * query_len], pages.kv, alone.metadata([query_len]))
        assert torch.equal(together[row], mine)


def test_neither_threads_nor_blocks_change_the_bits(isa: str) -> None:
    lens, query_lens = [70, 600, 33], [70, 130, 1]
    q, results = randn(sum(query_lens), 9, 64), list[Tensor]()
    for threads, permutation in [(1, 0), (2, 1), (3, 2)]:
        dispatch.configure(Mode.AUTO, threads, isa=isa)
        pages = pack(make_pages(lens, dtype=torch.bfloat16, permutation_seed=permutation))
        results.append(attend(q, pages.kv, pages.metadata(query_lens)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_blocks_of_32() -> None:
    pages = make_pages([100, 33], block_size=32, dtype=torch.int8)
    q = randn(8, 9, 64, dtype=torch.bfloat16)
    actual = attend(q, packed(pages.kv), pages.metadata([7, 1]))
    assert relative_error(actual, attend64(q, pages, [7, 1])) < 5e-3


def test_what_has_left_the_window_is_not_read() -> None:
    pages = make_pages([100], dtype=torch.bfloat16)
    q = randn(4, 9, 64, dtype=torch.bfloat16)
    expected = attend64(q, pages, [4], 30)
    for position in range(100 - 4 - 29):
        pages.kv.values[pages.block_tables[0, position // 16], :, :, position % 16] = float("nan")
    pages.block_tables[0, :4] = 2**30
    assert relative_error(attend(q, packed(pages.kv), pages.metadata([4]), 30), expected) < 5e-3


def test_a_nan_in_one_sequence_stays_there_and_shows() -> None:
    pages = make_pages([20, 21, 22], dtype=torch.bfloat16)
    pages.kv.values[int(pages.block_tables[1, 0]), 1, :, 3] = float("nan")
    actual = attend(randn(3, 9, 64), packed(pages.kv), pages.metadata([1, 1, 1]))
    assert actual.isnan().any(dim=-1).tolist() == [False, True, False]


def test_int8_output_is_quantised_per_token() -> None:
    pages, q = make_pages([20, 5], dtype=torch.bfloat16), randn(3, 9, 64)
    kv, meta, out = packed(pages.kv), pages.metadata([2, 1]), poisoned_act(3, 576, torch.int8)
    with pytest.raises(ValueError, match="needs scratch"):
        paged_attention(q, kv, meta, out, scale=SCALE)
    exact = attend(q, kv, meta)
    paged_attention(q, kv, meta, out, scale=SCALE, scratch=poisoned(3, 576))
    in_place, same = q.clone(), poisoned_act(3, 576, torch.int8)
    paged_attention(in_place, kv, meta, same, scale=SCALE, scratch=in_place.view(3, 576))
    assert torch.equal(same.values, out.values)
    assert out.scale is not None
    error = (dequantize(out) - exact.double()).abs()
    assert (error <= 0.5001 * steps(out)).all()


def test_refuses_pages_that_do_not_fit() -> None:
    pages = make_pages([20], head_dim=24, dtype=torch.bfloat16)
    kv = LayerKVCache(pages.kv.values, packed=True)
    with pytest.raises(ValueError, match="expected multiples of 16"):
        attend(randn(1, 9, 24), kv, pages.metadata([1]))
