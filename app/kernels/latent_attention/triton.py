"""``latent_attention`` on a GPU.

Rows of one query are cut into splits by their length alone, and folded in their order, as
:mod:`app.kernels.paged_attention.decode` does; for rows of more, a program walks the latents for some queries and
heads.
A block of lines of several heads reads each latent once for all of them.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90; not yet run on a GPU.
"""

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.latent_attention.tile import attend_latents, load_queries
from app.kernels.paged_attention.decode import fold, merge_splits, split_length
from app.kernels.paged_attention.splits import MAX_SPLITS, VECTOR_EXTRA, programs_of_row, workspace_size
from app.kernels.paged_attention.tile import row_before_waiting
from app.kernels.types import AttentionMetadata, LayerLatents

_LOG2E = math.log2(math.e)
"""Scores carry this factor, so that exponentials are powers of two."""
_EXTRA: tl.constexpr = tl.constexpr(VECTOR_EXTRA)


@triton.jit
def _decode(
    q,
    pages,
    query_start_loc,
    seq_lens,
    block_tables,
    workspace,
    out,
    table_width,
    factor,
    H: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    C_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
    B: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    ALONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (r, g, p): row r, the g-th block of its heads, the p-th run of its splits; see ``paged_attention``."""
    let_next_start(PDL)
    row, group, program = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token, num_queries, seq_len = row_before_waiting(query_start_loc, seq_lens, row)
    length = split_length(seq_len, TILE, MAX_SPLITS)
    run = tl.cdiv(tl.cdiv(seq_len, length), tl.num_programs(2))
    split = program * run
    first = split * length
    last = tl.minimum((split + run) * length, seq_len)
    wait_for_inputs(PDL)
    if (num_queries != 1) | (first >= last):
        return
    head = group * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    columns = tl.arange(0, C_BLOCK)
    queries, rotated = load_queries(q, token.to(tl.int64) * H + head, head < H, C, R, C_BLOCK, R_BLOCK)
    table = block_tables + row.to(tl.int64) * table_width
    at = ((row.to(tl.int64) * H + head) * MAX_SPLITS + split) * (C + _EXTRA)
    split_end = (split + 1) * length
    peak = tl.full((BLOCK_HEADS,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_HEADS,), tl.float32)
    total = tl.zeros((BLOCK_HEADS, C_BLOCK), tl.float32)
    all_peak, all_mass, all_total = peak, mass, total
    for tile in range(first, last, TILE):
        peak, mass, total = attend_latents(
            queries, rotated, peak, mass, total, pages, table, tile, last, None, factor, C, R, C_BLOCK, R_BLOCK, B,
            TILE, True,
        )  # fmt: skip
        ends = tile + TILE >= tl.minimum(split_end, last)
        if ALONE:
            split_peak = tl.where(ends, peak, float("-inf"))  # with that, one that goes on adds nothing
            all_peak, all_mass, all_total = fold(all_peak, all_mass, all_total, split_peak, mass, total)
        else:
            stored = head < tl.where(ends, H, 0)
            tl.store(workspace + at[:, None] + columns[None, :], total, mask=stored[:, None] & (columns < C)[None, :])
            tl.store(workspace + at + C, peak, mask=stored)
            tl.store(workspace + at + C + 1, mass, mask=stored)
            at += tl.where(ends, C + _EXTRA, 0)
        split_end += tl.where(ends, length, 0)
        peak = tl.where(ends, float("-inf"), peak)  # with that, the next tile lets go of mass and sums
    if ALONE:
        result = to_dtype(all_total / all_mass[:, None], out.dtype.element_ty)
        place = out + ((token.to(tl.int64) * H + head) * C)[:, None] + columns[None, :]
        tl.store(place, result, mask=(head < H)[:, None] & (columns < C)[None, :])


@triton.jit
def _prefill(
    q,
    pages,
    query_start_loc,
    seq_lens,
    block_tables,
    out,
    num_rows,
    table_width,
    factor,
    H: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    C_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
    B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (i, g): the i-th block of queries, counted over all rows, and the g-th block of their heads.

    Row r's blocks begin at ``query_start_loc[r] // QUERIES + r``, which leaves room for the rest of every row.
    """
    let_next_start(PDL)
    QUERIES: tl.constexpr = BLOCK_M // BLOCK_HEADS
    block, group = tl.program_id(0), tl.program_id(1)
    row = tl.full((), 0, tl.int32)
    high = row + num_rows
    while high - row > 1:
        middle = (row + high) // 2
        if tl.load(query_start_loc + middle, cache_modifier=".cg") // QUERIES + middle <= block:
            row = middle
        else:
            high = middle
    token, num_queries, seq_len = row_before_waiting(query_start_loc, seq_lens, row)
    first_query = (block - token // QUERIES - row) * QUERIES
    wait_for_inputs(PDL)
    if (num_queries <= 1) | (first_query >= num_queries):
        return
    lines = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, C_BLOCK)
    query = first_query + lines // BLOCK_HEADS
    head = group * BLOCK_HEADS + lines % BLOCK_HEADS
    live = (query < num_queries) & (head < H)
    vectors = (token + query).to(tl.int64) * H + head
    queries, rotated = load_queries(q, vectors, live, C, R, C_BLOCK, R_BLOCK)
    prefix = seq_len - num_queries
    # Lines beside the block do what its first query does, and are not stored.
    query_positions = prefix + tl.where(live, query, first_query)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, C_BLOCK), tl.float32)
    table = block_tables + row.to(tl.int64) * table_width
    end = prefix + tl.minimum(first_query + QUERIES, num_queries)
    for tile in range(0, end, TILE):
        peak, mass, total = attend_latents(
            queries, rotated, peak, mass, total, pages, table, tile, end, query_positions, factor, C, R, C_BLOCK,
            R_BLOCK, B, TILE, True,
        )  # fmt: skip
    place = out + (vectors * C)[:, None] + columns[None, :]
    result = to_dtype(total / mass[:, None], out.dtype.element_ty)
    tl.store(place, result, mask=live[:, None] & (columns < C)[None, :])


def latent_attention_triton(
    q_THW: Tensor, pages: LayerLatents, meta: AttentionMetadata, out_THC: Tensor, scale: float
) -> None:
    """As the public ``latent_attention``; needs ``meta.split_workspace``."""
    _, heads, width = q_THW.shape
    rank = out_THC.shape[2]
    operands = {
        "q": q_THW,
        "pages": pages.values,
        "query_start_loc": meta.query_start_loc,
        "seq_lens": meta.seq_lens,
        "block_tables": meta.block_tables,
        "table_width": meta.block_tables.stride(0),
        "factor": scale * _LOG2E,
        "out": out_THC,
    }
    shape = {
        "H": heads,
        "C": rank,
        "R": width - rank,
        "C_BLOCK": max(16, triton.next_power_of_2(rank)),
        "R_BLOCK": max(16, triton.next_power_of_2(width - rank)),
        "B": pages.block_size,
    }
    _launch_decode(operands, shape, meta)
    if meta.max_query_len > 1:
        _launch_prefill(operands, shape)


def _launch_decode(operands: dict[str, Any], shape: dict[str, int], meta: AttentionMetadata) -> None:
    """Starts the kernels over all rows of a step; those of other than one query they leave alone."""
    rows, heads, rank = meta.seq_lens.numel(), shape["H"], shape["C"]
    tuned = launch_shape("latent_attention_decode", heads=heads, rank=rank, itemsize=operands["q"].itemsize)
    block_heads = min(tuned.pop("BLOCK_HEADS"), max(16, triton.next_power_of_2(heads)))
    blocks = triton.cdiv(heads, block_heads)
    cut = {"TILE": tuned.pop("TILE"), "MAX_SPLITS": MAX_SPLITS}
    programs = min(programs_of_row(rows, blocks), triton.cdiv(meta.max_seq_len, cut["TILE"]))
    workspace = meta.split_workspace
    if workspace is None or (programs > 1 and workspace.numel() < workspace_size(rows, heads, rank)):
        raise ValueError(f"latent_attention: Triton needs a meta.split_workspace for {rows} rows")
    launch(
        _decode,
        (rows, blocks, programs),
        {**operands, "workspace": workspace},
        {**shape, **cut, "BLOCK_HEADS": block_heads, "ALONE": programs == 1},
        **tuned,
    )
    if programs > 1:
        launch(
            merge_splits,
            (rows, heads),
            {
                "query_start_loc": meta.query_start_loc,
                "seq_lens": meta.seq_lens,
                "workspace": workspace,
                "out": operands["out"],
                "sinks": None,
                "window": None,
            },
            {"H": heads, "E": rank, "E_BLOCK": shape["C_BLOCK"], **cut},
            num_warps=4,
            num_stages=1,
        )


def _launch_prefill(operands: dict[str, Any], shape: dict[str, int]) -> None:
    """Starts the kernel over all rows of a step; those of one query it leaves alone."""
    tokens, rows, heads = len(operands["q"]), operands["seq_lens"].numel(), shape["H"]
    tuned = launch_shape("latent_attention_prefill", heads=heads, rank=shape["C"], itemsize=operands["q"].itemsize)
    block = tuned.pop("BLOCK_M")
    block_heads = min(block, triton.next_power_of_2(heads))
    launch(
        _prefill,
        (tokens // (block // block_heads) + rows, triton.cdiv(heads, block_heads)),
        {**operands, "num_rows": rows},
        {**shape, "BLOCK_M": block, "BLOCK_HEADS": block_heads, "TILE": tuned.pop("TILE")},
        **tuned,
    )
