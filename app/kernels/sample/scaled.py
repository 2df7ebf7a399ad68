"""A row's logits as sampling's kernels see them on a GPU: penalised, and over the temperature."""

import triton
import triton.language as tl


@triton.jit
def penalized(
    logits,
    token_mask,
    stop_mask,
    active,
    bias,
    repetition,
    presence,
    frequency,
    prompt_mask,
    output_counts,
    row,
    line,
    slot,
    ids,
    inside,
    V: tl.constexpr,
):
    """(raw, penalised) logits of ``ids``; ids beyond the vocabulary are -inf."""
    raw = tl.load(logits + line * V + ids, mask=inside, other=float("-inf"))
    value = raw
    at = slot * V + ids
    if token_mask is not None:
        words = tl.load(token_mask + slot * ((V + 31) // 32) + ids // 32, mask=inside, other=0)
        value = tl.where(((words >> (ids % 32)) & 1) == 1, value, float("-inf"))
    if stop_mask is not None:
        stops = tl.load(stop_mask + at, mask=inside, other=0).to(tl.int32)
        banned = (stops != 0) & (tl.load(active + row).to(tl.int32) != 0)
        value = tl.where(banned, float("-inf"), value)
    if bias is not None:
        value += tl.load(bias + at, mask=inside, other=0.0)
    if output_counts is not None:
        counts = tl.load(output_counts + at, mask=inside, other=0)
        prompted = tl.load(prompt_mask + at, mask=inside, other=0).to(tl.int32)
        factor = tl.load(repetition + row)
        scaled = tl.where(value > 0, tl.div_rn(value, factor), value * factor)
        value = tl.where((prompted != 0) | (counts > 0), scaled, value)
        value -= tl.load(frequency + row) * counts.to(tl.float32)
        value -= tl.where(counts > 0, tl.load(presence + row), 0.0)
    return raw, value


@triton.jit
def row_peak(peaks, row, PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr):
    """Largest penalised logit of a row; 0 if it is not finite, so that a row that fails makes no NaN on its way."""
    pieces = tl.arange(0, PIECES_BLOCK)
    peak = tl.max(tl.load(peaks + row * PIECES + pieces, mask=pieces < PIECES, other=float("-inf")), axis=0)
    return tl.where(tl.abs(peak) < float("inf"), peak, 0.0)


@triton.jit
def ordered(x):
    """Floats as int32 that order like them; -0.0 like 0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_ordered(key):
    """The float whose :func:`ordered` form is ``key``."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def scaled_piece(
    logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    row, line, slot, piece, peak, heat,
    V: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """(logits over temperature, relative to the row's largest; whether they are of the vocabulary) of a piece."""
    ids = piece * PIECE + tl.arange(0, PIECE)
    inside = ids < V
    _, value = penalized(
        logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
        row, line, slot, ids, inside, V,
    )  # fmt: skip
    # Relative to the largest, so that a tiny temperature cannot overflow it.
    return tl.div_rn(value - peak, heat), inside
