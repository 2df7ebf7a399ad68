"""``paged_attention`` on a GPU.

Rows of one query (decodes) are cut along their keys: a program attends to one split of 256 positions for all query
heads of a KV head, a second kernel merges the splits (flash-decoding). Rows of more queries are cut along the queries:
a program walks a row's keys for a block of them. A mixed step starts all three kernels, each of which leaves the
other's rows alone, so a decode gives the same bits beside prefills as without them.

A query's result hangs on its own row: tiles of keys begin at absolute positions and are walked upwards, tiles that are
hidden from a query change nothing. So a chunk gives the bits of the whole prompt, and block numbers do not matter.
Decode and prefill multiply with different instructions: a query computed by one is not promised the other's bits.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.paged_attention.splits import MAX_SPLITS, SPLIT, VECTOR_EXTRA
from app.kernels.paged_attention.tile import attend_tile, window_start
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, AttentionMetadata, LayerKVCache

_MIN_COLUMNS = 32
"""Pairs of int8 elements fill half of them, and a product on tensor cores is of 16 at least."""


@triton.jit
def _split_length(seq_len, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Positions of a split: 256, or the least multiple of it with which the sequence has few enough splits."""
    return tl.cdiv(seq_len, SPLIT * MAX_SPLITS) * SPLIT


@triton.jit
def _decode_splits(
    q,
    kv,
    kv_scale,
    query_start_loc,
    seq_lens,
    block_tables,
    workspace,
    table_width,
    factor,
    window,
    H: tl.constexpr,
    G: tl.constexpr,
    E: tl.constexpr,
    E_BLOCK: tl.constexpr,
    B: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (r, g, s): row r, KV head g, split s. Leaves sums, peaks and masses in the workspace."""
    wait_for_inputs(PDL)
    row, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(query_start_loc + row)
    if tl.load(query_start_loc + row + 1) - token != 1:
        return
    seq_len = tl.load(seq_lens + row)
    length = _split_length(seq_len, SPLIT, MAX_SPLITS)
    begin = window_start(seq_len, window)
    first = split * length
    last = tl.minimum(first + length, seq_len)
    if (first >= seq_len) | (last <= begin):
        return
    SHARED: tl.constexpr = H // G
    PAIRED: tl.constexpr = kv.dtype.element_ty == tl.int16
    WIDTH: tl.constexpr = E // 2 if PAIRED else E
    COLUMNS: tl.constexpr = E_BLOCK // 2 if PAIRED else E_BLOCK
    heads = tl.arange(0, M)
    columns = tl.arange(0, COLUMNS)
    inside = (heads < SHARED)[:, None] & (columns < WIDTH)[None, :]
    head = group * SHARED + heads
    query_at = q + (token.to(tl.int64) * H + head)[:, None] * E + columns[None, :] * (E // WIDTH)
    queries = tl.load(query_at, mask=inside, other=0.0)
    odd_queries = None
    total = tl.zeros((M, COLUMNS), tl.float32)
    total_odd = total
    if PAIRED:
        odd_queries = tl.load(query_at + 1, mask=inside, other=0.0)
    peak = tl.full((M,), float("-inf"), tl.float32)
    mass = tl.zeros((M,), tl.float32)
    table = block_tables + row.to(tl.int64) * table_width
    first = tl.maximum(first, begin // TILE * TILE)
    if window is not None:
        edge_to = tl.minimum(tl.cdiv(begin, TILE) * TILE, last)
        for tile in range(first, edge_to, TILE):
            peak, mass, total, total_odd = attend_tile(
                queries, odd_queries, peak, mass, total, total_odd, kv, kv_scale, table, 2 * G * B, group * B, G * B,
                tile, begin, last, None, factor, None, WIDTH, COLUMNS, B, TILE, True,
            )  # fmt: skip
        first = tl.maximum(first, edge_to)
    whole_to = first + (last - first) // TILE * TILE
    for tile in range(first, whole_to, TILE):
        peak, mass, total, total_odd = attend_tile(
            queries, odd_queries, peak, mass, total, total_odd, kv, kv_scale, table, 2 * G * B, group * B, G * B,
            tile, begin, last, None, factor, None, WIDTH, COLUMNS, B, TILE, False,
        )  # fmt: skip
    for tile in range(whole_to, last, TILE):
        peak, mass, total, total_odd = attend_tile(
            queries, odd_queries, peak, mass, total, total_odd, kv, kv_scale, table, 2 * G * B, group * B, G * B,
            tile, begin, last, None, factor, None, WIDTH, COLUMNS, B, TILE, True,
        )  # fmt: skip
    at = ((row.to(tl.int64) * H + head) * MAX_SPLITS + split) * (E + 2)
    total_at = workspace + at[:, None] + columns[None, :] * (E // WIDTH)
    tl.store(total_at, total, mask=inside)
    if PAIRED:
        tl.store(total_at + 1, total_odd, mask=inside)
    tl.store(workspace + at + E, peak, mask=heads < SHARED)
    tl.store(workspace + at + E + 1, mass, mask=heads < SHARED)


@triton.jit
def _merge_splits(
    query_start_loc,
    seq_lens,
    workspace,
    out,
    window,
    H: tl.constexpr,
    E: tl.constexpr,
    E_BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (r, h): the splits of a row's head, in their order."""
    wait_for_inputs(PDL)
    row, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(query_start_loc + row)
    if tl.load(query_start_loc + row + 1) - token != 1:
        return
    seq_len = tl.load(seq_lens + row)
    length = _split_length(seq_len, SPLIT, MAX_SPLITS)
    columns = tl.arange(0, E_BLOCK)
    inside = columns < E
    peak = float("-inf")
    mass = 0.0
    total = tl.zeros((E_BLOCK,), tl.float32)
    at = workspace + (row.to(tl.int64) * H + head) * MAX_SPLITS * (E + 2)
    for split in range(window_start(seq_len, window) // length, tl.cdiv(seq_len, length)):
        piece = at + split * (E + 2)
        split_peak = tl.load(piece + E)
        new_peak = tl.maximum(peak, split_peak)
        decay = tl.exp2(peak - new_peak)
        share = tl.exp2(split_peak - new_peak)
        mass = mass * decay + tl.load(piece + E + 1) * share
        total = total * decay + tl.load(piece + columns, mask=inside, other=0.0) * share
        peak = new_peak
    result = to_dtype(total / mass, out.dtype.element_ty)
    tl.store(out + (token.to(tl.int64) * H + head) * E + columns, result, mask=inside)


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
    wait_for_inputs(PDL)
    SHARED: tl.constexpr = H // G
    QUERIES: tl.constexpr = BLOCK_M // SHARED
    block, group = tl.program_id(0), tl.program_id(1)
    low = tl.full((), 0, tl.int32)
    high = low + num_rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) // QUERIES + middle <= block:
            low = middle
        else:
            high = middle
    row = low
    token = tl.load(query_start_loc + row)
    num_queries = tl.load(query_start_loc + row + 1) - token
    first_query = (block - token // QUERIES - row) * QUERIES
    if (num_queries <= 1) | (first_query >= num_queries):
        return
    seq_len = tl.load(seq_lens + row)
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
                queries, None, peak, mass, total, unpaired, kv, kv_scale, table, 2 * G * B, group * B, G * B, tile,
                begin, end, query_positions, factor, window, E, E_BLOCK, B, TILE, True,
            )  # fmt: skip
    for tile in range(whole_from, whole_to, TILE):
        peak, mass, total, unpaired = attend_tile(
            queries, None, peak, mass, total, unpaired, kv, kv_scale, table, 2 * G * B, group * B, G * B, tile,
            begin, end, query_positions, factor, window, E, E_BLOCK, B, TILE, False,
        )  # fmt: skip
    for tile in range(whole_to, end, TILE):
        peak, mass, total, unpaired = attend_tile(
            queries, None, peak, mass, total, unpaired, kv, kv_scale, table, 2 * G * B, group * B, G * B, tile,
            begin, end, query_positions, factor, window, E, E_BLOCK, B, TILE, True,
        )  # fmt: skip
    tl.store(out + place, to_dtype(total / mass[:, None], out.dtype.element_ty), mask=inside)


def _pairs(pages: Tensor) -> Tensor:
    """Int8 pages as int16: tensor cores take their operands from shared memory in no less."""
    return pages.view(torch.int16) if pages.dtype == torch.int8 else pages


def paged_attention_triton(
    q: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    out: Act,
    scale: float,
    sliding_window: int | None,
    scratch: Tensor | None,
) -> None:
    """As the public ``paged_attention``; needs ``meta.split_workspace``."""
    tokens, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.values.shape
    rows = meta.seq_lens.numel()
    target = out.values if out.scale is None else scratch
    if target is None or meta.split_workspace is None:
        raise ValueError("paged_attention: Triton needs meta.split_workspace, and a scratch where out is int8")
    where = {"query_start_loc": meta.query_start_loc, "seq_lens": meta.seq_lens}
    pages = {
        "q": q,
        "kv": kv.values,
        "kv_scale": kv.scale,
        "block_tables": meta.block_tables,
        "table_width": meta.block_tables.stride(0),
        "factor": scale * math.log2(math.e),
        "window": sliding_window,
        **where,
    }
    head = {"H": heads, "E": head_dim, "E_BLOCK": triton.next_power_of_2(head_dim)}
    shape = {**head, "G": kv_heads, "B": block_size}
    cut = {"SPLIT": SPLIT, "MAX_SPLITS": MAX_SPLITS}
    dims = {"head_dim": head_dim, "int8": int(kv.scale is not None)}
    shared = heads // kv_heads
    splits = min(MAX_SPLITS, triton.cdiv(meta.max_seq_len, SPLIT))
    workspace = meta.split_workspace
    if workspace.numel() < rows * heads * MAX_SPLITS * (head_dim + VECTOR_EXTRA):
        raise ValueError(f"paged_attention: meta.split_workspace of {workspace.numel()} is too small for {rows} rows")
    tuned = launch_shape("paged_attention_decode", **dims)
    launch(
        _decode_splits,
        (rows, kv_heads, splits),
        {**pages, "kv": _pairs(kv.values), "workspace": workspace},
        {
            **shape,
            "E_BLOCK": max(shape["E_BLOCK"], _MIN_COLUMNS),
            **cut,
            "M": max(16, triton.next_power_of_2(shared)),
            "TILE": tuned.pop("TILE"),
        },
        **tuned,
    )
    launch(
        _merge_splits,
        (rows, heads),
        {**where, "workspace": workspace, "out": target, "window": sliding_window},
        {**head, **cut},
        num_warps=1,
        num_stages=1,
    )
    if meta.max_query_len > 1:
        tuned = launch_shape("paged_attention_prefill", **dims)
        block = {"BLOCK_M": max(tuned.pop("BLOCK_M"), triton.next_power_of_2(shared)), "TILE": tuned.pop("TILE")}
        launch(
            _prefill,
            (tokens // (block["BLOCK_M"] // shared) + rows, kv_heads),
            {**pages, "out": target, "num_rows": rows},
            {**shape, **block},
            **tuned,
        )
    if out.scale is not None:
        quantize_triton(target, out)
