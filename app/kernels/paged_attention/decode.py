"""Attention of rows of one query on a GPU (decodes).

A row's keys are cut into splits by its length alone; each split's result is folded into the row's, in their order.
Where rows are many, a program goes through all splits of a row for the query heads of a KV head; where they are few,
programs share a row's splits, and a second kernel folds them (flash-decoding). Both come to the same bits.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90. Heads
of more than 256 elements have not yet run on a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, round_even, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.paged_attention.splits import MAX_SPLITS, VECTOR_EXTRA, programs_of_row, workspace_size
from app.kernels.paged_attention.tile import attend_tile, row_before_waiting, window_start, with_sink

_MIN_COLUMNS = 32
"""Pairs of int8 elements fill half of them, and a product on tensor cores is of 16 at least."""
_EXTRA: tl.constexpr = tl.constexpr(VECTOR_EXTRA)
_AT_ONCE: tl.constexpr = tl.constexpr(8)
"""Splits that are loaded together to be folded."""


@triton.jit
def split_length(seq_len, TILE: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Positions of a split: a tile, or as many as leave the sequence few enough splits; its length alone decides."""
    return tl.maximum(tl.cdiv(seq_len, TILE * MAX_SPLITS), 1) * TILE


@triton.jit
def fold(peak, mass, total, split_peak, split_mass, split_total):
    """A split's result taken along; with fused products named, so that both kernels that fold come to the same bits."""
    new_peak = tl.maximum(peak, split_peak)
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    decay, share = tl.exp2(peak - base), tl.exp2(split_peak - base)
    mass = tl.fma(mass, decay, split_mass * share)
    if len(total.shape) == 2:
        decay = tl.broadcast_to(decay[:, None], total.shape)
        total = tl.fma(total, decay, split_total * share[:, None])
    else:
        total = tl.fma(total, tl.broadcast_to(decay, total.shape), split_total * share)
    return new_peak, mass, total


@triton.jit
def _decode(
    q,
    keys,
    values,
    kv_scale,
    query_start_loc,
    seq_lens,
    block_tables,
    workspace,
    out,
    table_width,
    factor,
    cap,
    sinks,
    window,
    H: tl.constexpr,
    G: tl.constexpr,
    E: tl.constexpr,
    E_BLOCK: tl.constexpr,
    B: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    ALONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (r, g, p): row r, KV head g, the p-th run of its splits.

    One that is alone folds the splits as it goes and writes what they come to; of several each leaves its splits' sums,
    peaks and masses in the workspace.
    """
    let_next_start(PDL)
    row, group, program = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token, num_queries, seq_len = row_before_waiting(query_start_loc, seq_lens, row)
    length = split_length(seq_len, TILE, MAX_SPLITS)
    begin = window_start(seq_len, window)
    num_splits = tl.cdiv(seq_len, length)
    run = tl.cdiv(num_splits - begin // length, tl.num_programs(2))
    split = begin // length + program * run
    first = tl.maximum(split * length, begin // TILE * TILE)
    last = tl.minimum((split + run) * length, seq_len)
    wait_for_inputs(PDL)
    if (num_queries != 1) | (first >= last):
        return
    SHARED: tl.constexpr = H // G
    PAIRED: tl.constexpr = values.dtype.element_ty == tl.int16
    COLUMNS: tl.constexpr = E_BLOCK // 2 if PAIRED else E_BLOCK
    heads = tl.arange(0, M)
    head = group * SHARED + heads
    columns = tl.arange(0, E_BLOCK)
    query_at = q + (token.to(tl.int64) * H + head)[:, None] * E + columns[None, :]
    queries = tl.load(query_at, mask=(heads < SHARED)[:, None] & (columns < E)[None, :], other=0.0)
    low_queries = None
    if PAIRED and q.dtype.element_ty != tl.float32:
        queries, low_queries, query_scale = _to_two_int8(queries.to(tl.float32))
        factor *= query_scale
    table = block_tables + row.to(tl.int64) * table_width
    at = ((row.to(tl.int64) * H + head) * MAX_SPLITS + split) * (E + _EXTRA)
    split_end = (split + 1) * length
    peak = tl.full((M,), float("-inf"), tl.float32)
    mass = tl.zeros((M,), tl.float32)
    total = tl.zeros((M, COLUMNS), tl.float32)
    total_odd, all_peak, all_mass, all_total, all_odd = total, peak, mass, total, total
    for tile in range(first, last, TILE):
        peak, mass, total, total_odd = attend_tile(
            queries, low_queries, peak, mass, total, total_odd, keys, values, kv_scale, table, 2 * G * B, group * B,
            G * B, tile, begin, last, None, factor, cap, None, q.dtype.element_ty, E, E_BLOCK, B, TILE, True,
        )  # fmt: skip
        ends = tile + TILE >= tl.minimum(split_end, last)
        if ALONE:
            split_peak = tl.where(ends, peak, float("-inf"))  # with that, one that goes on adds nothing
            if PAIRED:
                _, _, all_odd = fold(all_peak, all_mass, all_odd, split_peak, mass, total_odd)
            all_peak, all_mass, all_total = fold(all_peak, all_mass, all_total, split_peak, mass, total)
        else:
            stored = heads < tl.where(ends, SHARED, 0)
            _store_vectors(workspace + at, total, total_odd, stored, E, PAIRED)
            tl.store(workspace + at + E, peak, mask=stored)
            tl.store(workspace + at + E + 1, mass, mask=stored)
            at += tl.where(ends, E + _EXTRA, 0)
        split_end += tl.where(ends, length, 0)
        peak = tl.where(ends, float("-inf"), peak)  # with that, the next tile lets go of mass and sums
    if ALONE:
        if sinks is not None:
            sink = tl.load(sinks + head, mask=heads < SHARED, other=0.0)
            if PAIRED:
                _, all_odd = with_sink(all_peak, all_mass, all_odd, sink)
            all_mass, all_total = with_sink(all_peak, all_mass, all_total, sink)
        all_total, all_odd = all_total / all_mass[:, None], all_odd / all_mass[:, None]
        _store_vectors(out + (token.to(tl.int64) * H + head) * E, all_total, all_odd, heads < SHARED, E, PAIRED)


@triton.jit
def _to_two_int8(x):
    """(high, low, scale) of fp32 lines: ``x = (128 * high + low) * scale`` to 15 bits of the line's largest element."""
    scale = tl.max(tl.abs(x), axis=1) / (127 * 128)
    steps = round_even(x / tl.where(scale == 0, 1.0, scale)[:, None])
    high = round_even(steps / 128)
    return high.to(tl.int8), (steps - 128 * high).to(tl.int8), scale


@triton.jit
def _store_vectors(at, even, odd, present, E: tl.constexpr, PAIRED: tl.constexpr):
    """A vector of E elements a line, put together from even and odd ones where those are apart."""
    whole = even
    if PAIRED:
        whole = tl.interleave(even, odd)
    columns = tl.arange(0, whole.shape[1])
    inside = present[:, None] & (columns < E)[None, :]
    tl.store(at[:, None] + columns[None, :], to_dtype(whole, at.dtype.element_ty), mask=inside)


@triton.jit
def merge_splits(
    query_start_loc,
    seq_lens,
    workspace,
    out,
    sinks,
    window,
    H: tl.constexpr,
    E: tl.constexpr,
    E_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (r, h): the splits of a row's head, in their order."""
    let_next_start(PDL)
    row, head = tl.program_id(0), tl.program_id(1)
    token, num_queries, seq_len = row_before_waiting(query_start_loc, seq_lens, row)
    length = split_length(seq_len, TILE, MAX_SPLITS)
    first, last = window_start(seq_len, window) // length, tl.cdiv(seq_len, length)
    wait_for_inputs(PDL)
    if num_queries != 1:
        return
    columns = tl.arange(0, E_BLOCK)
    inside = columns < E
    peak = tl.full((), float("-inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    total = tl.zeros((E_BLOCK,), tl.float32)
    at = workspace + (row.to(tl.int64) * H + head) * MAX_SPLITS * (E + _EXTRA)
    for some in range(first, last, _AT_ONCE):
        # Loads of several splits are under way at once; in place of one past the last stands that one, without weight.
        for ahead in tl.static_range(_AT_ONCE):
            split = some + ahead
            piece = at + tl.minimum(split, last - 1) * (E + _EXTRA)
            split_peak = tl.where(split < last, tl.load(piece + E), float("-inf"))
            split_mass = tl.load(piece + E + 1)
            split_total = tl.load(piece + columns, mask=inside, other=0.0)
            peak, mass, total = fold(peak, mass, total, split_peak, split_mass, split_total)
    if sinks is not None:
        mass, total = with_sink(peak, mass, total, tl.load(sinks + head))
    result = to_dtype(total / mass, out.dtype.element_ty)
    tl.store(out + (token.to(tl.int64) * H + head) * E + columns, result, mask=inside)


def launch_decode(
    pages: dict[str, Any],
    shape: dict[str, int],
    out: Tensor,
    workspace: Tensor,
    *,
    max_seq_len: int,
) -> None:
    """Starts the kernels over all rows of a step; those of other than one query they leave alone.

    Args:
        pages: queries, pages and where rows stand, as the kernels call them.
        shape: ``H``, ``G``, ``E``, ``E_BLOCK`` and ``B``.
        workspace: as :func:`~app.kernels.paged_attention.splits.new_split_workspace` makes it.
    """
    rows, heads, kv_heads, head_dim = pages["seq_lens"].numel(), shape["H"], shape["G"], shape["E"]
    tuned = launch_shape("paged_attention_decode", head_dim=head_dim, int8=int(pages["kv_scale"] is not None))
    cut = {"TILE": tuned.pop("TILE"), "MAX_SPLITS": MAX_SPLITS}
    programs = min(programs_of_row(rows, kv_heads), triton.cdiv(max_seq_len, cut["TILE"]))
    if programs > 1 and workspace.numel() < workspace_size(rows, heads, head_dim):
        raise ValueError(f"paged_attention: meta.split_workspace of {workspace.numel()} is too small for {rows} rows")
    kv, scale = pages["kv"], pages["kv_scale"]
    # The second operand of a product comes out of shared memory in two bytes along the sum: int8 keys lie that way,
    # values do not, and are taken in pairs of columns.
    operands = {
        **{name: value for name, value in pages.items() if name != "kv"},
        "keys": kv,
        "values": kv if scale is None else kv.view(torch.int16),
        "kv_scale": None if scale is None else scale.view(-1).view(torch.int32),
    }
    launch(
        _decode,
        (rows, kv_heads, programs),
        {**operands, "workspace": workspace, "out": out},
        {
            **shape,
            "E_BLOCK": max(shape["E_BLOCK"], _MIN_COLUMNS),
            **cut,
            "M": max(16, triton.next_power_of_2(heads // kv_heads)),
            "ALONE": programs == 1,
        },
        **tuned,
    )
    if programs > 1:
        launch(
            merge_splits,
            (rows, heads),
            {
                **{name: pages[name] for name in ("query_start_loc", "seq_lens", "sinks", "window")},
                "workspace": workspace,
                "out": out,
            },
            {**{name: shape[name] for name in ("H", "E", "E_BLOCK")}, **cut},
            num_warps=1,
            num_stages=1,
        )
