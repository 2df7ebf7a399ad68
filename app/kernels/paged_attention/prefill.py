"""Attention of rows of more than one query on a GPU: prompts, and chunks behind a cached prefix.

A program walks a row's keys for a block of its queries.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90. Heads
of more than 256 elements have not yet run on a GPU.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.paged_attention.tile import attend_tile, row_before_waiting, window_start, with_sink


@triton.jit
def _prefill(
    q,
    kv,
    kv_scale,
    query_start_loc,
    seq_lens,
    block_tables,
    out,
    num_rows,
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
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (i, g): the i-th block of queries, counted over all rows, of KV head g.

    Row r's blocks begin at ``query_start_loc[r] // QUERIES + r``, which leaves room for the rest of every row.
    """
    let_next_start(PDL)
    SHARED: tl.constexpr = H // G
    QUERIES: tl.constexpr = BLOCK_M // SHARED
    block, group = tl.program_id(0), tl.program_id(1)
    low = tl.full((), 0, tl.int32)
    high = low + num_rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle, cache_modifier=".cg") // QUERIES + middle <= block:
            low = middle
        else:
            high = middle
    row = low
    token, num_queries, seq_len = row_before_waiting(query_start_loc, seq_lens, row)
    first_query = (block - token // QUERIES - row) * QUERIES
    wait_for_inputs(PDL)
    if (num_queries <= 1) | (first_query >= num_queries):
        return
    lines = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, E_BLOCK)
    query = first_query + lines // SHARED
    live = (query < num_queries) & (lines < QUERIES * SHARED)
    head = group * SHARED + lines % SHARED
    place = ((token + query).to(tl.int64) * H + head)[:, None] * E + columns[None, :]
    inside = live[:, None] & (columns < E)[None, :]
    queries = tl.load(q + place, mask=inside, other=0.0)
    prefix = seq_len - num_queries
    # Lines beside the block do what its first query does, and are not stored.
    query_positions = prefix + tl.where(live, query, first_query)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, E_BLOCK), tl.float32)
    unpaired = tl.full((), 0.0, tl.float32)  # in the place of odd columns: Triton 3.6 takes no None through a loop
    table = block_tables + row.to(tl.int64) * table_width
    first_position = prefix + first_query
    last_position = prefix + tl.minimum(first_query + QUERIES, num_queries) - 1
    end = last_position + 1
    begin = window_start(first_position + 1, window)
    # Tiles that all queries of the block see whole need no mask: past every window's edge, before the first query.
    whole_from = tl.cdiv(window_start(end, window), TILE) * TILE
    whole_to = tl.maximum((first_position + 1) // TILE * TILE, whole_from)
    if window is not None:
        for tile in range(begin // TILE * TILE, tl.minimum(whole_from, end), TILE):
            peak, mass, total, unpaired = attend_tile(
                queries, None, peak, mass, total, unpaired, kv, kv, kv_scale, table, 2 * G * B, group * B, G * B, tile,
                begin, end, query_positions, factor, cap, window, q.dtype.element_ty, E, E_BLOCK, B, TILE, True,
            )  # fmt: skip
    for tile in range(whole_from, whole_to, TILE):
        peak, mass, total, unpaired = attend_tile(
            queries, None, peak, mass, total, unpaired, kv, kv, kv_scale, table, 2 * G * B, group * B, G * B, tile,
            begin, end, query_positions, factor, cap, window, q.dtype.element_ty, E, E_BLOCK, B, TILE, False,
        )  # fmt: skip
    for tile in range(whole_to, end, TILE):
        peak, mass, total, unpaired = attend_tile(
            queries, None, peak, mass, total, unpaired, kv, kv, kv_scale, table, 2 * G * B, group * B, G * B, tile,
            begin, end, query_positions, factor, cap, window, q.dtype.element_ty, E, E_BLOCK, B, TILE, True,
        )  # fmt: skip
    if sinks is not None:
        mass, total = with_sink(peak, mass, total, tl.load(sinks + head))
    tl.store(out + place, to_dtype(total / mass[:, None], out.dtype.element_ty), mask=inside)


def launch_prefill(pages: dict[str, Any], shape: dict[str, int], out: Tensor) -> None:
    """Starts the kernel over all rows of a step; those of one query it leaves alone. Arguments as of
    :func:`~app.kernels.paged_attention.decode.launch_decode`."""
    tokens, rows, shared = len(pages["q"]), pages["seq_lens"].numel(), shape["H"] // shape["G"]
    tuned = launch_shape("paged_attention_prefill", head_dim=shape["E"], int8=int(pages["kv_scale"] is not None))
    block = {"BLOCK_M": max(tuned.pop("BLOCK_M"), triton.next_power_of_2(shared)), "TILE": tuned.pop("TILE")}
    launch(
        _prefill,
        (tokens // (block["BLOCK_M"] // shared) + rows, shape["G"]),
        {**pages, "out": out, "num_rows": rows},
        {**shape, **block},
        **tuned,
    )
