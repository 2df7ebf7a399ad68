"""A tile of keys and values on a GPU, which decode and prefill attend to alike."""

import triton
import triton.language as tl

from app.kernels.gpu.lib import dot, to_dtype, widen, widen_pairs


@triton.jit
def row_before_waiting(query_start_loc, seq_lens, row):
    """(first token, tokens, length of the sequence) of a row, past the L1: see :func:`wait_for_inputs`."""
    token = tl.load(query_start_loc + row, cache_modifier=".cg")
    next_token = tl.load(query_start_loc + row + 1, cache_modifier=".cg")
    return token, next_token - token, tl.load(seq_lens + row, cache_modifier=".cg")


@triton.jit
def _load_vectors(at, inside, ALIGNED: tl.constexpr):
    """A tile of pages; columns that fill their block (``ALIGNED``) need no mask."""
    if ALIGNED:
        return tl.load(at)
    return tl.load(at, mask=inside[None, :], other=0)


@triton.jit
def _load_scales(words, vectors, positions, B: tl.constexpr):
    """fp32 scales of vectors, out of words of two fp16 each: no less can be copied while other tiles are at work."""
    parity = vectors % 2 if B % 2 else positions % 2  # of whole blocks the one has the other's, known without a table
    halves = tl.load(words + vectors // 2) >> (parity * 16).to(tl.int32)
    return halves.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def attend_tile(
    q,
    q_odd,
    peak,
    mass,
    total,
    total_odd,
    kv,
    kv_scale,
    table,
    block_stride,
    head_offset,
    value_offset,
    first,
    begin,
    end,
    query_positions,
    factor,
    window,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    B: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of keys, positions ``first`` on: q [M, WIDTH] against them, the running softmax taken along.

    Pairs of int8 elements (pages of int16) meet the even columns of the queries in ``q`` and the odd ones in ``q_odd``;
    the sums are apart likewise.

    Args:
        kv_scale: in words of two.
        head_offset, value_offset: of the KV head within a block, and of its values behind its keys, in vectors.
        begin, end: the positions that may be read.
        query_positions: of the lines of q; None where all see what may be read.
    """
    PAIRED: tl.constexpr = q_odd is not None
    ALIGNED: tl.constexpr = WIDTH == COLUMNS
    positions = first + tl.arange(0, TILE)
    columns = tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    near = positions
    if MASKED:  # what may not be read has the nearest that may in its place, and no weight
        near = tl.minimum(tl.maximum(positions, begin), end - 1)
    vectors = tl.load(table + near // B).to(tl.int64) * block_stride + (head_offset + near % B)
    at = kv + vectors[:, None] * WIDTH + columns[None, :]
    keys = _load_vectors(at, inside, ALIGNED)
    scores = tl.zeros((q.shape[0], TILE), tl.float32)
    if PAIRED:
        even, odd = widen_pairs(keys, q.dtype)
        scores = dot(q_odd, tl.trans(odd), dot(q, tl.trans(even), scores))
    else:
        scores = dot(q, tl.trans(widen(keys, q.dtype)), scores)
    scores *= factor
    if kv_scale is not None:
        scores *= _load_scales(kv_scale, vectors, near, B)[None, :]
    if MASKED:
        visible = ((positions >= begin) & (positions < end))[None, :]
        if query_positions is not None:
            distance = query_positions[:, None] - positions[None, :]
            visible &= distance >= 0
            if window is not None:
                visible &= distance < window
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    base = new_peak
    if MASKED:  # nothing visible yet: a peak of -inf would give NaN
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(peak - base)
    mass = mass * decay + tl.sum(weights, axis=1)
    values = _load_vectors(at + value_offset * WIDTH, inside, ALIGNED)
    if kv_scale is not None:
        weights *= _load_scales(kv_scale, vectors + value_offset, value_offset + near, B)[None, :]
    weights = to_dtype(weights, q.dtype)
    if PAIRED:
        even, odd = widen_pairs(values, q.dtype)
        total_odd = dot(weights, odd, total_odd * decay[:, None])
        total = dot(weights, even, total * decay[:, None])
    else:
        total = dot(weights, widen(values, q.dtype), total * decay[:, None])
    return new_peak, mass, total, total_odd


@triton.jit
def window_start(seq_len, window):
    """The first position that the last one sees."""
    start = seq_len * 0
    if window is not None:
        start = tl.maximum(seq_len - window, 0)
    return start
