"""Where a row's recurrent state stands in its pages on a GPU: see :class:`app.kernels.types.LayerState`."""

import triton
import triton.language as tl


@triton.jit
def _entry(table, index, given):
    """A block of a row's table, -1 where there is none."""
    return tl.load(table + index, mask=given, other=-1, cache_modifier=".cg").to(tl.int64)


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
