"""``paged_attention`` in Triton against float64, and what a query's bits may hang on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.kernels.paged_attention import paged_attention
from app.kernels.paged_attention.splits import new_split_workspace, programs_of_row
from app.kernels.types import Act, AttentionMetadata, LayerKVCache
from tests.kernels.test_paged_attention import CAPS_AND_SINKS, SCALE, attend64, some_sinks
from tests.kernels.util import TOLERANCE, Pages, dequantize, make_pages, poisoned, randn, relative_error

pytestmark = pytest.mark.usefixtures("interpreted")

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 32


def attend(
    q: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    rows, (_, heads, width), kv_heads = meta.seq_lens.numel(), q.shape, kv.values.shape[2]
    workspace = new_split_workspace(rows, heads, kv_heads, width, q.device).fill_(torch.nan)
    out = poisoned(len(q), q.shape[1] * q.shape[2], dtype=q.dtype)
    meta = replace(meta, split_workspace=workspace)
    paged_attention(q, kv, meta, Act(out), scale=SCALE, sliding_window=window, softcap=softcap, sinks=sinks)
    return out


def pages_of(seq_lens: list[int], dtype: torch.dtype = torch.float32, permutation_seed: int = 0) -> Pages:
    return make_pages(seq_lens, kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=dtype, permutation_seed=permutation_seed)


def queries(count: int, dtype: torch.dtype = torch.float32, heads: int = HEADS, width: int = HEAD_DIM) -> Tensor:
    return randn(count, heads, width, seed=7, dtype=dtype)


def check(
    seq_lens: list[int],
    query_lens: list[int],
    *,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    heads: tuple[int, int] = (HEADS, KV_HEADS),
    width: int = HEAD_DIM,
    block_size: int = 16,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    pages = make_pages(seq_lens, kv_heads=heads[1], head_dim=width, dtype=dtype, block_size=block_size)
    q = queries(sum(query_lens), torch.float32 if dtype is torch.int8 else dtype, heads[0], width)
    actual = attend(q, pages.kv, pages.metadata(query_lens), window, softcap, sinks)
    assert relative_error(actual, attend64(q, pages, query_lens, window, softcap, sinks)) <= TOLERANCE[q.dtype]


@pytest.mark.parametrize(
    ("seq_lens", "query_lens"),
    [
        ([1, 15, 16, 17], [1, 1, 1, 1]),
        ([1, 15, 16, 17], [1, 15, 16, 17]),
        ([255, 256, 257], [1, 1, 1]),
        ([50, 40, 7, 130], [50, 1, 3, 35]),
    ],
)
@pytest.mark.parametrize("window", [None, 1, 21])
def test_against_fp64(seq_lens: list[int], query_lens: list[int], window: int | None) -> None:
    check(seq_lens, query_lens, window=window)


@pytest.mark.parametrize(
    ("softcap", "sunk", "dtype"),
    [
        *((softcap, sunk, torch.float32) for softcap, sunk in CAPS_AND_SINKS),
        (3.0, True, torch.bfloat16),
        (3.0, True, torch.int8),
    ],
)
def test_capped_scores_and_sinks(softcap: float | None, sunk: bool, dtype: torch.dtype) -> None:
    sinks = some_sinks(4) if sunk else None
    check([70, 7, 33], [1, 3, 33], window=21, dtype=dtype, heads=(4, 2), width=16, softcap=softcap, sinks=sinks)


def test_a_nan_shows_through_a_cap() -> None:
    pages = pages_of([20, 21])
    pages.kv.values[int(pages.block_tables[1, 0]), 0, :, 3] = float("nan")
    actual = attend(queries(2), pages.kv, pages.metadata([1, 1]), None, 2.0, some_sinks(HEADS))
    assert actual.isnan().any(dim=-1).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_formats(dtype: torch.dtype) -> None:
    check([70, 33, 1], [1, 33, 1], dtype=dtype)


def test_int8_keys_lose_nothing_to_16_bit_queries() -> None:
    """Queries so large that 8 bits of them would show in the probabilities; fp16, whose tolerance is narrow."""
    pages = pages_of([70, 33, 1, 300], dtype=torch.int8)
    q = queries(4, torch.float16) * 20
    actual, expected = attend(q, pages.kv, pages.metadata([1] * 4)), attend64(q, pages, [1] * 4)
    assert relative_error(actual, expected) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("width", [16, 64, 80, 96, 128, 256, 512])
def test_head_widths(width: int) -> None:
    check([40, 20], [1, 20], width=width, heads=(2, 1))


def test_int8_heads_of_256() -> None:
    check([40, 20], [1, 20], width=256, heads=(4, 1), dtype=torch.int8)


@pytest.mark.parametrize("heads", [(4, 4), (7, 1), (9, 3), (32, 2), (5, 1)])
def test_any_number_of_heads_shares_a_kv_head(heads: tuple[int, int]) -> None:
    check([37, 20], [1, 20], heads=heads, width=16)


@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_block_sizes(block_size: int) -> None:
    check([37, 20], [1, 20], block_size=block_size, width=16)


def test_sequences_beyond_the_most_splits() -> None:
    check([256 * 32 + 1], [1], heads=(1, 1), width=16)


@pytest.mark.parametrize(
    ("query", "page", "window", "softcap", "sunk"),
    [
        (torch.float32, torch.float32, None, None, False),
        pytest.param(torch.float32, torch.int8, None, None, False, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, torch.int8, None, None, False, marks=pytest.mark.slow),
        (torch.float32, torch.int8, 300, None, False),
        (torch.bfloat16, torch.int8, None, 3.0, True),
    ],
)
def test_programs_that_share_a_row_come_to_the_bits_of_one_alone(
    query: torch.dtype,
    page: torch.dtype,
    window: int | None,
    softcap: float | None,
    sunk: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lens = [1, 129, 64 * 32 + 5]
    pages = make_pages(lens, kv_heads=2, head_dim=16, dtype=page)
    q, meta = queries(3, query, heads=4, width=16), pages.metadata([1] * 3)
    how = (window, softcap, some_sinks(4) if sunk else None)
    assert programs_of_row(3, 2) == 32
    shared = attend(q, pages.kv, meta, *how)
    monkeypatch.setattr("app.kernels.paged_attention.splits._PROGRAMS", 6)  # as if that were a large launch
    assert programs_of_row(3, 2) == 1
    assert torch.equal(attend(q, pages.kv, meta, *how), shared)


def test_int8_has_a_scale_a_token() -> None:
    pages = pages_of([40, 20])
    q = queries(21)
    out = Act(poisoned(21, HEADS * HEAD_DIM, dtype=torch.int8), poisoned(21, 1))
    meta = pages.metadata([1, 20])
    workspace = new_split_workspace(2, HEADS, KV_HEADS, HEAD_DIM, q.device)
    paged_attention(
        q.clone(), pages.kv, replace(meta, split_workspace=workspace), out, scale=SCALE, scratch=q.view(21, -1)
    )
    assert relative_error(dequantize(out), attend64(queries(21), pages, [1, 20])) <= 1e-2


def test_the_scratch_may_be_the_queries_memory() -> None:
    pages = pages_of([40, 20])
    meta = replace(
        pages.metadata([1, 20]), split_workspace=new_split_workspace(2, HEADS, KV_HEADS, HEAD_DIM, torch.device("cpu"))
    )
    outs = list[Act]()
    for q in (queries(21), queries(21)):
        out = Act(poisoned(21, HEADS * HEAD_DIM, dtype=torch.int8), poisoned(21, 1))
        scratch = q.view(21, -1) if outs else poisoned(21, HEADS * HEAD_DIM)
        paged_attention(q, pages.kv, meta, out, scale=SCALE, scratch=scratch)
        outs.append(out)
    assert torch.equal(outs[0].values, outs[1].values)


def _row(pages: Pages, row: int) -> Pages:
    return Pages(pages.kv, pages.block_tables[row : row + 1], [pages.keys[row]], [pages.values[row]])


def test_a_row_does_not_see_its_neighbours() -> None:
    lens, counts = [300, 33, 64, 17], [1, 33, 1, 5]
    pages = pages_of(lens)
    q = queries(sum(counts))
    whole, token = attend(q, pages.kv, pages.metadata(counts)), 0
    for row, count in enumerate(counts):
        alone = attend(q[token : token + count], pages.kv, _row(pages, row).metadata([count]))
        assert torch.equal(whole[token : token + count], alone)
        token += count


def test_block_numbers_do_not_matter() -> None:
    q = queries(21)
    results = []
    for permutation in (0, 1):
        pages = pages_of([300, 20], permutation_seed=permutation)
        results.append(attend(q, pages.kv, pages.metadata([1, 20])))
    assert torch.equal(*results)


def test_more_splits_than_needed_change_nothing() -> None:
    """As in a graph, whose grid is that of the longest sequence it may meet."""
    pages = pages_of([300, 40])
    q, meta = queries(2), pages.metadata([1, 1])
    wide = replace(meta, max_seq_len=4096, block_tables=torch.nn.functional.pad(meta.block_tables, (0, 256)))
    assert torch.equal(attend(q, pages.kv, meta), attend(q, pages.kv, wide))


@pytest.mark.parametrize("window", [None, 30])
def test_chunks_and_a_cached_prefix_give_the_bits_of_one_shot(window: int | None) -> None:
    length = 150
    pages = pages_of([length])
    q = queries(length)
    whole = attend(q, pages.kv, pages.metadata([length]), window)
    for first, last in ((0, 17), (17, 64), (64, 150), (100, 150)):
        part = Pages(pages.kv, pages.block_tables, [pages.keys[0][:last]], [pages.values[0][:last]])
        chunk = attend(q[first:last], pages.kv, part.metadata([last - first]), window)
        assert torch.equal(chunk, whole[first:last])


def test_padded_rows_without_queries_are_left_alone() -> None:
    pages = pages_of([40, 20])
    q = queries(2)
    meta = pages.metadata([1, 1])
    meta = replace(
        meta,
        query_start_loc=torch.tensor([0, 1, 2, 2], dtype=torch.int32),
        seq_lens=torch.tensor([40, 20, 0], dtype=torch.int32),
        block_tables=torch.nn.functional.pad(meta.block_tables, (0, 0, 0, 1), value=2**30),
    )
    assert relative_error(attend(q, pages.kv, meta), attend64(q, pages, [1, 1])) <= TOLERANCE[torch.float32]


def test_it_asks_for_its_workspace() -> None:
    pages = pages_of([4])
    with pytest.raises(ValueError, match="split_workspace"):
        paged_attention(queries(1), pages.kv, pages.metadata([1]), Act(poisoned(1, HEADS * HEAD_DIM)), scale=SCALE)


def test_blocks_before_every_window_are_not_read() -> None:
    """Their entries in the table may be anything: they are somebody else's by now, or nobody's."""
    pages, q = pages_of([300, 200]), queries(5)
    expected = attend64(q, pages, [1, 4], 30)
    for row, first in enumerate(((300 - 30) // 16, (200 - 4 - 29) // 16)):
        pages.kv.values[pages.block_tables[row, :first]] = torch.nan
        pages.block_tables[row, :first] = 2**30
    assert relative_error(attend(q, pages.kv, pages.metadata([1, 4]), 30), expected) < 1e-6
