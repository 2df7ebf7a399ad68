"""A tile of keys and values on a GPU, which decode and prefill attend to alike."""

import triton
import triton.language as tl

from app.kernels.gpu.lib import dot, to_dtype, widen, widen_pairs


@triton.jit
def _load_vectors(at, readable, inside, MASKED: tl.constexpr, ALIGNED: tl.constexpr):
    """A tile of pages: whole ones need no mask, nor do columns that fill their block (``ALIGNED``)."""
    if MASKED:
        return tl.load(at, mask=readable[:, None] & inside[None, :], other=0)
    if ALIGNED:
        return tl.load(at)
    return tl.load(at, mask=inside[None, :], other=0)


@triton.jit
def _load_scales(at, readable, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(at, mask=readable, other=0.0).to(tl.float32)
    return tl.load(at).to(tl.float32)


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
        head_offset, value_offset: of the KV head within a block, and of its values behind its keys, in vectors.
        begin, end: the positions that may be read.
        query_positions: of the lines of q; None where all see what may be read.
    """
    PAIRED: tl.constexpr = q_odd is not None
    ALIGNED: tl.constexpr = WIDTH == COLUMNS
    positions = first + tl.arange(0, TILE)
    columns = tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    readable = (positions >= begin) & (positions < end)
    blocks = tl.load(table + positions // B, mask=readable, other=0) if MASKED else tl.load(table + positions // B)
    vectors = blocks.to(tl.int64) * block_stride + (head_offset + positions % B)
    at = kv + vectors[:, None] * WIDTH + columns[None, :]
    keys = _load_vectors(at, readable, inside, MASKED, ALIGNED)
    scores = tl.zeros((q.shape[0], TILE), tl.float32)
    if PAIRED:
        even, odd = widen_pairs(keys, q.dtype)
        scores = dot(q_odd, tl.trans(odd), dot(q, tl.trans(even), scores))
    else:
        scores = dot(q, tl.trans(widen(keys, q.dtype)), scores)
    scores *= factor
    if kv_scale is not None:
        scores *= _load_scales(kv_scale + vectors, readable, MASKED)[None, :]
    if MASKED:
        visible = readable[None, :]
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
    values = _load_vectors(at + value_offset * WIDTH, readable, inside, MASKED, ALIGNED)
    if kv_scale is not None:
        weights *= _load_scales(kv_scale + vectors + value_offset, readable, MASKED)[None, :]
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
