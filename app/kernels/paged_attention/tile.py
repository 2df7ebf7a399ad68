"""A tile of keys and values on a GPU, which decode and prefill attend to alike."""

import triton
import triton.language as tl

from app.kernels.gpu.lib import dot, dot_int8, tanh, to_dtype, widen, widen_pairs

_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def row_before_waiting(query_start_loc, seq_lens, row):
    """(first token, tokens, length of the sequence) of a row, read past the L1: see :func:`wait_for_inputs`."""
    token = tl.load(query_start_loc + row, cache_modifier=".cg")
    next_token = tl.load(query_start_loc + row + 1, cache_modifier=".cg")
    return token, next_token - token, tl.load(seq_lens + row, cache_modifier=".cg")


@triton.jit
def _load_vectors(base, vectors, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """[TILE, COLUMNS]: vectors of pages; columns that fill their block need no mask."""
    columns = tl.arange(0, COLUMNS)
    at = base + vectors[:, None] * WIDTH + columns[None, :]
    if WIDTH == COLUMNS:
        return tl.load(at)
    return tl.load(at, mask=(columns < WIDTH)[None, :], other=0)


@triton.jit
def _load_scales(kv_scale, vectors, positions, B: tl.constexpr):
    """fp32 scales of vectors; out of words of two fp16 each they can be copied while other tiles are at work."""
    if kv_scale.dtype.element_ty == tl.int32:
        parity = vectors % 2 if B % 2 else positions % 2  # the same in whole blocks, and known without a table
        halves = tl.load(kv_scale + vectors // 2) >> (parity * 16).to(tl.int32)
        scales = halves.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        scales = tl.load(kv_scale + vectors).to(tl.float32)
    return scales


@triton.jit
def attend_tile(
    q,
    q_low,
    peak,
    mass,
    total,
    total_odd,
    all_keys,
    all_values,
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
    cap,
    window,
    DTYPE: tl.constexpr,
    E: tl.constexpr,
    E_BLOCK: tl.constexpr,
    B: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Attends queries q [M, E] to the tile of keys from position ``first`` on; returns the updated running softmax.

    Args:
        q, q_low: queries; int8 ones, for int8 keys, are ``128 * q + q_low``, otherwise ``q_low`` is None.
        peak, mass: [M], the running softmax's maximum and sum.
        total, total_odd: its weighted sums of all columns of the values, or of even and odd columns where those are
            loaded in pairs.
        all_keys, all_values: the pages; int8 values are loaded in pairs where ``all_values`` views them as int16.
        kv_scale: scales of int8 pages as fp16, or as int32 words of two.
        head_offset, value_offset: offset of the KV head within a block, and of its values from its keys, in vectors.
        begin, end: the positions that may be read.
        query_positions: position of each of q's lines; None where all lines see all that may be read.
        factor: factor of the products; for int8 queries one for each line.
        cap: softcap of scores, which have a factor of log2(e); None: there is none.
        DTYPE: dtype in which floating tiles are multiplied.
    """
    PAIRED: tl.constexpr = all_values.dtype.element_ty == tl.int16
    positions = first + tl.arange(0, TILE)
    near = positions
    if MASKED:  # what may not be read has the nearest that may in its place, and no weight
        near = tl.minimum(tl.maximum(positions, begin), end - 1)
    vectors = tl.load(table + near // B).to(tl.int64) * block_stride + (head_offset + near % B)
    keys = _load_vectors(all_keys, vectors, E, E_BLOCK)
    if q_low is not None:
        sums = tl.zeros((q.shape[0], TILE), tl.int32)
        high, low = dot_int8(q, tl.trans(keys), sums), dot_int8(q_low, tl.trans(keys), sums)
        scores = (high * 128 + low).to(tl.float32) * factor[:, None]
    else:
        sums = tl.zeros((q.shape[0], TILE), tl.float32)
        scores = dot(q, tl.trans(widen(keys, DTYPE)), sums) * factor
    if kv_scale is not None:
        scores *= _load_scales(kv_scale, vectors, near, B)[None, :]
    if cap is not None:
        scores = cap * tanh(scores / cap)
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
    if kv_scale is not None:
        weights *= _load_scales(kv_scale, vectors + value_offset, value_offset + near, B)[None, :]
    weights = to_dtype(weights, DTYPE)
    if PAIRED:
        pairs = _load_vectors(all_values, vectors + value_offset, E // 2, E_BLOCK // 2)
        even, odd = widen_pairs(pairs, DTYPE)
        total_odd = dot(weights, odd, total_odd * decay[:, None])
        total = dot(weights, even, total * decay[:, None])
    else:
        values = _load_vectors(all_values, vectors + value_offset, E, E_BLOCK)
        total = dot(weights, widen(values, DTYPE), total * decay[:, None])
    return new_peak, mass, total, total_odd


@triton.jit
def with_sink(peak, mass, total, sink):
    """(mass, total) with each head's sink added: a key with that score and without a value."""
    sink *= _LOG2E
    new_peak = tl.maximum(peak, sink)
    decay = tl.exp2(peak - new_peak)
    mass = tl.fma(mass, decay, tl.exp2(sink - new_peak))
    if len(total.shape) == 2:
        decay = decay[:, None]
    return mass, total * decay


@triton.jit
def window_start(seq_len, window):
    """The first position that the last position of a sequence sees."""
    start = seq_len * 0
    if window is not None:
        start = tl.maximum(seq_len - window, 0)
    return start
