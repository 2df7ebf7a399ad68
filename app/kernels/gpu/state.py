"""A row's recurrent state in its pages, on a GPU: see :class:`app.kernels.types.LayerState`."""

import triton
import triton.language as tl

from app.kernels.gpu.lib import dot, dot_fp32


@triton.jit
def _entry(table, index, given):
    """A block of a row's table, -1 where there is none."""
    return tl.load(table + index, mask=given, other=-1, cache_modifier=".cg").to(tl.int64)


@triton.jit
def row_of(query_start_loc, num_rows, token):
    """The row of a token of the step, one of the last row's where it is padding. May be read before waiting."""
    low = tl.full((), 0, tl.int32)
    high = low + num_rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle, cache_modifier=".cg") <= token:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def state_row(query_start_loc, seq_lens, block_tables, table_width, row, B: tl.constexpr):
    """(first token, tokens, position of the first, block read, block left, block of the boundary within the row, tokens
    ahead of that boundary), each block -1 where there is none. May be read before waiting."""
    token = tl.load(query_start_loc + row, cache_modifier=".cg")
    tokens = tl.load(query_start_loc + row + 1, cache_modifier=".cg") - token
    end = tl.load(seq_lens + row, cache_modifier=".cg")
    start = end - tokens
    boundary = end // B * B
    table = block_tables + row.to(tl.int64) * table_width
    source = _entry(table, (start - 1) // B, (tokens > 0) & (start > 0))
    target = _entry(table, (end - 1) // B, tokens > 0)
    crosses = (start < boundary) & (boundary < end)
    checkpoint = _entry(table, boundary // B - 1, crosses)
    return token, tokens, start, source, target, checkpoint, boundary - start


@triton.jit
def dot_inputs(a, b, acc):
    """``acc + a @ b`` of tiles in the inputs' dtype; products of 16-bit tiles are exact."""
    if a.dtype == tl.float32:
        return dot_fp32(a, b, acc)
    return dot(a, b, acc)


@triton.jit
def load_piece(at, token_stride, place, live, piece, DK: tl.constexpr):
    """[chunk, piece] of keys, queries or what stands for them; zeros for tokens outside the chunk."""
    mask = live[:, None] & (piece < DK)[None, :]
    return tl.load(at + place.to(tl.int64)[:, None] * token_stride + piece[None, :], mask=mask, other=0.0)


@triton.jit
def load_state(state, block, head, piece, column, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr):
    """[piece, columns] fp32 of a head's state; zeros where there is no block."""
    mask = (piece < tl.where(block >= 0, DK, 0))[:, None] & (column < DV)[None, :]
    return tl.load(
        state + (block * HV + head) * (DK * DV) + piece[:, None] * DV + column[None, :], mask=mask, other=0.0
    )


@triton.jit
def store_state(state, block, head, piece, column, s, HV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr):
    """Leaves [piece, columns] of a head's state; nothing where there is no block."""
    mask = (piece < tl.where(block >= 0, DK, 0))[:, None] & (column < DV)[None, :]
    tl.store(state + (block * HV + head) * (DK * DV) + piece[:, None] * DV + column[None, :], s, mask=mask)
