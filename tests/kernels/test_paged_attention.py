from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.kernels.paged_attention import paged_attention
from app.kernels.types import AttentionMetadata, LayerKVCache
from tests.kernels.util import (
    INT8_TOLERANCE,
    TOLERANCE,
    Pages,
    dequantize,
    make_pages,
    poisoned_act,
    randn,
    relative_error,
    steps,
)

SCALE = 0.17


def attend64(
    q: Tensor,
    pages: Pages,
    query_lens: list[int],
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Token by token, head by head, in fp64 on the plain keys and values."""
    outputs, token = [], 0
    for keys, values, query_len in zip(pages.keys, pages.values, query_lens, strict=True):
        for position in range(len(keys) - query_len, len(keys)):
            first = 0 if window is None else max(0, position + 1 - window)
            group = q.shape[1] // keys.shape[1]
            k = keys[first : position + 1].repeat_interleave(group, dim=1)
            v = values[first : position + 1].repeat_interleave(group, dim=1)
            scores = torch.einsum("he,she->hs", q[token].double(), k) * SCALE
            if softcap is not None:
                scores = softcap * (scores / softcap).tanh()
            mass = scores.exp().sum(dim=-1, keepdim=True)
            probs = scores.exp() / (mass if sinks is None else mass + sinks.double().exp()[:, None])
            outputs.append(torch.einsum("hs,she->he", probs, v).flatten())
            token += 1
    return torch.stack(outputs)


def attend(
    q: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    out = poisoned_act(len(q), q.shape[1] * q.shape[2], q.dtype)
    paged_attention(q, kv, meta, out, scale=SCALE, sliding_window=window, softcap=softcap, sinks=sinks)
    return out.values


def some_sinks(heads: int) -> Tensor:
    """Some that weigh nothing, some as much as keys do, and one that weighs more than all of them."""
    return torch.cat((torch.linspace(-20, 6, heads - 1), torch.tensor([90.0])))


MIXES = [
    ([1], [1]),
    ([1, 15, 16, 17], [1, 1, 1, 1]),
    ([1, 15, 16, 17], [1, 15, 16, 17]),
    ([15, 16, 17, 33], [14, 1, 2, 16]),
    ([150, 40, 7, 300], [150, 1, 3, 65]),
]


@pytest.mark.parametrize(("seq_lens", "query_lens"), MIXES)
@pytest.mark.parametrize("window", [None, 1, 16, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_against_fp64(seq_lens: list[int], query_lens: list[int], window: int | None, dtype: torch.dtype) -> None:
    pages = make_pages(seq_lens, dtype=dtype)
    q = randn(sum(query_lens), 9, 64, dtype=torch.bfloat16 if dtype is torch.bfloat16 else torch.float32)
    actual = attend(q, pages.kv, pages.metadata(query_lens), window)
    assert relative_error(actual, attend64(q, pages, query_lens, window)) < TOLERANCE[q.dtype]


CAPS_AND_SINKS = [(0.5, False), (30.0, False), (None, True), (2.0, True)]


@pytest.mark.parametrize(("seq_lens", "query_lens"), MIXES)
@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize(("softcap", "sunk"), CAPS_AND_SINKS)
def test_capped_scores_and_sinks(
    seq_lens: list[int], query_lens: list[int], window: int | None, softcap: float | None, sunk: bool
) -> None:
    pages, q = make_pages(seq_lens), randn(sum(query_lens), 9, 64)
    sinks = some_sinks(9) if sunk else None
    actual = attend(q, pages.kv, pages.metadata(query_lens), window, softcap, sinks)
    assert relative_error(actual, attend64(q, pages, query_lens, window, softcap, sinks)) < 1e-6


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mixture(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=5))
    seq_lens = [max(a, b) for a, b in rows]
    query_lens = [min(a, b) for a, b in rows]
    window = data.draw(st.none() | st.integers(1, 90))
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (1, 5), (3, 3), (2, 1)]))
    block_size = data.draw(st.sampled_from([1, 8, 16]))
    pages = make_pages(seq_lens, kv_heads=kv_heads, head_dim=10, block_size=block_size)
    q = randn(sum(query_lens), kv_heads * group, 10)
    actual = attend(q, pages.kv, pages.metadata(query_lens), window)
    assert relative_error(actual, attend64(q, pages, query_lens, window)) < 1e-6


def test_many_long_decodes_are_gathered_in_turns() -> None:
    lens = [1100, 1030, 1200, 1024, 1101, 3]
    pages, q = make_pages(lens, kv_heads=1, head_dim=8), randn(6, 2, 8)
    actual = attend(q, pages.kv, pages.metadata([1] * 6))
    assert relative_error(actual, attend64(q, pages, [1] * 6)) < 1e-6


def test_int8_pages_stay_close_to_the_unquantised_ones() -> None:
    lens = [40, 130]
    exact, rounded = make_pages(lens), make_pages(lens, dtype=torch.int8)
    q = randn(2, 9, 64)
    actual = attend(q, rounded.kv, rounded.metadata([1, 1]))
    assert relative_error(actual, attend64(q, exact, [1, 1])) < INT8_TOLERANCE


def test_int8_output_is_quantised_per_token() -> None:
    pages, q = make_pages([20, 5]), randn(3, 9, 64)
    out = poisoned_act(3, 576, torch.int8)
    paged_attention(q, pages.kv, pages.metadata([2, 1]), out, scale=SCALE)
    assert out.scale is not None
    error = (dequantize(out) - attend64(q, pages, [2, 1])).abs()
    assert (error <= 0.5001 * steps(out)).all()


@pytest.mark.parametrize("query_lens", [[1, 1, 1], [70, 1, 33]])
def test_where_the_blocks_lie_does_not_matter(query_lens: list[int]) -> None:
    lens, q = [70, 16, 33], randn(sum(query_lens), 9, 64)
    results = []
    for permutation in range(3):
        pages = make_pages(lens, permutation_seed=permutation)
        results.append(attend(q, pages.kv, pages.metadata(query_lens)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("chunks", [[100, 50], [1, 149], [16, 16, 17, 1, 100], [64] * 2 + [22]])
def test_chunked_equals_one_shot(window: int | None, chunks: list[int]) -> None:
    pages, q = make_pages([150]), randn(150, 9, 64)
    whole = attend(q, pages.kv, pages.metadata([150]), window)
    pieces, end = [], 0
    for chunk in chunks:
        end += chunk
        seen = Pages(pages.kv, pages.block_tables, [pages.keys[0][:end]], [pages.values[0][:end]])
        pieces.append(attend(q[end - chunk : end], pages.kv, seen.metadata([chunk]), window))
    assert relative_error(torch.cat(pieces), whole) < 1e-6


def test_a_shared_prefix_equals_a_cold_one() -> None:
    """Two rows whose tables begin with the same blocks see what they would see with copies of their own."""
    pages = make_pages([48, 40])
    table = pages.block_tables.clone()
    table[1, :2] = table[0, :2]
    shared = Pages(pages.kv, table, pages.keys, [])
    keys = torch.cat((pages.keys[0][:32], pages.keys[1][32:]))
    values = torch.cat((pages.values[0][:32], pages.values[1][32:]))
    cold = Pages(pages.kv, table, [pages.keys[0], keys], [pages.values[0], values])
    q = randn(1 + 8, 9, 64)
    assert relative_error(attend(q, pages.kv, shared.metadata([1, 8])), attend64(q, cold, [1, 8])) < 1e-6


@pytest.mark.parametrize("query_len", [1, 9])
def test_neighbours_do_not_change_a_row(query_len: int) -> None:
    lens = [33, 9, 64, 200, 90]
    query_lens = [query_len] * len(lens)
    pages, q = make_pages(lens), randn(len(lens) * query_len, 9, 64)
    together = attend(q, pages.kv, pages.metadata(query_lens)).split(query_len)
    for row in range(len(lens)):
        alone = Pages(pages.kv, pages.block_tables[row : row + 1], [pages.keys[row]], [pages.values[row]])
        mine = attend(q[row * query_len : (row + 1) * query_len], pages.kv, alone.metadata([query_len]))
        assert torch.equal(together[row], mine)


def test_a_nan_in_one_sequence_stays_there() -> None:
    pages = make_pages([20, 21, 22])
    block = int(pages.block_tables[1, 0])
    pages.kv.values[block, 1, :, 3] = float("nan")
    actual = attend(randn(3, 9, 64), pages.kv, pages.metadata([1, 1, 1]))
    assert actual.isnan().any(dim=-1).tolist() == [False, True, False]


def test_refuses_arguments_that_do_not_fit() -> None:
    pages = make_pages([20])
    meta, q, out = pages.metadata([1]), randn(1, 9, 64), poisoned_act(1, 576)
    with pytest.raises(ValueError, match="paged_attention: 8 query heads do not divide into 3"):
        paged_attention(randn(1, 8, 64), pages.kv, meta, out, scale=1.0)
    with pytest.raises(ValueError, match="paged_attention: kv has shape"):
        paged_attention(randn(1, 9, 32), pages.kv, meta, out, scale=1.0)
    with pytest.raises(ValueError, match="paged_attention: out has shape"):
        paged_attention(q, pages.kv, meta, poisoned_act(1, 64), scale=1.0)
    with pytest.raises(ValueError, match="paged_attention: sliding_window is 0"):
        paged_attention(q, pages.kv, meta, out, scale=1.0, sliding_window=0)
    with pytest.raises(ValueError, match=r"paged_attention: softcap is 0.0, expected more than 0"):
        paged_attention(q, pages.kv, meta, out, scale=1.0, softcap=0.0)
    with pytest.raises(ValueError, match=r"paged_attention: sinks has shape \[3\], expected \[9\]"):
        paged_attention(q, pages.kv, meta, out, scale=1.0, sinks=torch.zeros(3))
    with pytest.raises(ValueError, match=r"paged_attention: sinks is torch.bfloat16"):
        paged_attention(q, pages.kv, meta, out, scale=1.0, sinks=torch.zeros(9, dtype=torch.bfloat16))
    narrow = AttentionMetadata(
        meta.query_start_loc, meta.seq_lens, meta.block_tables[:, :1].contiguous(), meta.slot_mapping, 1, 20
    )
    with pytest.raises(ValueError, match=r"paged_attention: meta.block_tables is too narrow for 20 tokens"):
        paged_attention(q, pages.kv, narrow, out, scale=1.0)


def test_blocks_before_every_window_are_not_read() -> None:
    """Their entries in the table may be anything: they are somebody else's by now, or nobody's."""
    pages, q = make_pages([300, 200]), randn(5, 9, 64)
    expected = attend64(q, pages, [1, 4], 30)
    for row, first in enumerate(((300 - 30) // 16, (200 - 4 - 29) // 16)):
        pages.kv.values[pages.block_tables[row, :first]] = torch.nan
        pages.block_tables[row, :first] = 2**30
    assert relative_error(attend(q, pages.kv, pages.metadata([1, 4]), 30), expected) < 1e-6
