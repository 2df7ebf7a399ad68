"""A tile of latents on a GPU, which decode and prefill attend to alike."""

import triton
import triton.language as tl

from app.kernels.gpu.lib import dot, to_dtype, widen


@triton.jit
def load_queries(q, vectors, live, C: tl.constexpr, R: tl.constexpr, C_BLOCK: tl.constexpr, R_BLOCK: tl.constexpr):
    """[M, C_BLOCK] and [M, R_BLOCK]: the two parts of query vectors, zeros where they are not live."""
    compressed, rotated = tl.arange(0, C_BLOCK), tl.arange(0, R_BLOCK)
    at = q + (vectors * (C + R))[:, None]
    parts = tl.load(at + compressed[None, :], mask=live[:, None] & (compressed < C)[None, :], other=0.0)
    return parts, tl.load(at + C + rotated[None, :], mask=live[:, None] & (rotated < R)[None, :], other=0.0)


@triton.jit
def attend_latents(
    q,
    q_rotated,
    peak,
    mass,
    total,
    pages,
    table,
    first,
    end,
    query_positions,
    factor,
    C: tl.constexpr,
    R: tl.constexpr,
    C_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
    B: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of latents, positions ``first`` on: queries [M, C] and [M, R] against them, the running softmax taken
    along.

    Args:
        end: the first position that may not be read.
        query_positions: of the lines of q; None where all see what may be read.
        factor: of the products.
    """
    positions = first + tl.arange(0, TILE)
    near = positions
    if MASKED:  # what may not be read has the nearest that may in its place, and no weight
        near = tl.minimum(positions, end - 1)
    vectors = tl.load(table + near // B).to(tl.int64) * B + near % B
    compressed, rotated = tl.arange(0, C_BLOCK), tl.arange(0, R_BLOCK)
    at = pages + (vectors * (C + R))[:, None]
    if C == C_BLOCK:
        latents = tl.load(at + compressed[None, :])
    else:
        latents = tl.load(at + compressed[None, :], mask=(compressed < C)[None, :], other=0.0)
    if R == R_BLOCK:
        keys = tl.load(at + C + rotated[None, :])
    else:
        keys = tl.load(at + C + rotated[None, :], mask=(rotated < R)[None, :], other=0.0)
    latents, keys = widen(latents, q.dtype), widen(keys, q.dtype)
    scores = dot(q, tl.trans(latents), tl.zeros((q.shape[0], TILE), tl.float32))
    scores = dot(q_rotated, tl.trans(keys), scores) * factor
    if MASKED:
        visible = (positions < end)[None, :]
        if query_positions is not None:
            visible &= query_positions[:, None] >= positions[None, :]
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    base = new_peak
    if MASKED:  # nothing visible yet: a peak of -inf would give NaN
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(peak - base)
    mass = mass * decay + tl.sum(weights, axis=1)
    total = dot(to_dtype(weights, q.dtype), latents, total * decay[:, None])
    return new_peak, mass, total
