"""The least logit that a row keeps, on a GPU, without a sort.

1. Where a row cuts by top_k or top_p, a program a piece lists its largest logits: all above a level of its own.
2. Where it cuts at all, a program a row finds the least logit kept, a bit of its ordered form at a time, among those
   listed. Where that is below some piece's level (flat rows, high top_k), it looks through all logits, four bits at a
   time: a pass counts, for 15 values at once, what lies at or above each.

The mass of top_p is summed in fp32, in which a token right at the edge may fall on the other side.

Held against the definition in plain numbers in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to
sm_90.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.sample.params import SampleParams
from app.kernels.sample.scaled import from_ordered, ordered, row_peak, scaled_piece
from app.kernels.sample.workspace import KEPT, PIECE, SampleWorkspace, num_pieces

_DIGITS: tl.constexpr = tl.constexpr(16)
_LEVELS: tl.constexpr = tl.constexpr(8)
"""Number of levels, which lie 0.5 to 32 below the largest logit."""


@triton.jit
def _list_largest(
    logits, rows, slots,
    token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    peaks, temperature, top_k, top_p, kept, kept_from, left_mass,
    V: tl.constexpr, PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr, PIECE: tl.constexpr, KEPT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Lists a piece's scaled logits above the lowest level that at most KEPT reach; sums the mass of the others."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heat = tl.load(temperature + row)
    if (heat == 0) | _keeps_all(top_k, top_p, row):
        return
    line, slot = tl.load(rows + row), tl.load(slots + row)
    scaled, inside = scaled_piece(
        logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
        row, line, slot, piece, row_peak(peaks, row, PIECES, PIECES_BLOCK), heat, V, PIECE,
    )  # fmt: skip
    level = tl.full((), float("inf"), tl.float32)
    for step in range(_LEVELS):
        trial = -0.5 * (step + 1) * (step + 1)
        reach = tl.sum(((scaled >= trial) & inside).to(tl.int32), axis=0)
        level = tl.where(reach <= KEPT, trial, level)
    level = tl.where(tl.sum((inside & (scaled > float("-inf"))).to(tl.int32), axis=0) <= KEPT, -3e38, level)
    listed = inside & (scaled >= level)
    place = tl.cumsum(listed.to(tl.int32), axis=0) - 1
    at = row * PIECES + piece
    lanes = tl.arange(0, KEPT)
    tl.store(kept + at * KEPT + lanes, float("-inf"), mask=lanes >= tl.sum(listed.to(tl.int32), axis=0))
    tl.store(kept + at * KEPT + place, scaled, mask=listed)
    tl.store(kept_from + at, level)
    tl.store(left_mass + at, tl.sum(tl.where(inside & (listed == 0), tl.exp(scaled), 0.0), axis=0))


@triton.jit
def _keeps_all(top_k, top_p, row):
    """Whether neither top_k nor top_p cuts."""
    cuts = row < 0
    if top_k is not None:
        cuts |= tl.load(top_k + row) > 0
    if top_p is not None:
        cuts |= tl.load(top_p + row) < 1.0
    return cuts == 0


@triton.jit
def _search_listed(keys, weights, wanted):
    """The result of :func:`_search` among a row's listed logits.

    Args:
        keys: the logits in their ordered form.
        weights: what each of them counts.
        wanted: the sum of weights that is looked for.
    """
    prefix = tl.full((), 0, tl.int64)
    for step in range(32):
        trial = prefix + (tl.full((), 1, tl.int64) << (31 - step))
        pivot = (trial - 2147483648).to(tl.int32)
        reach = tl.sum(tl.where(keys >= pivot, weights, weights * 0), axis=0)
        prefix = tl.where(reach >= wanted, trial, prefix)
    return from_ordered((prefix - 2147483648).to(tl.int32))


@triton.jit
def _search(
    logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    row, line, slot, peak, heat, least, wanted,
    V: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """The largest scaled logit with ``wanted`` logits, or mass, at or above it; the mass is of those from ``least`` on.

    Four bits of its ordered form at a time, from the top.
    """
    digits = tl.arange(0, _DIGITS)
    prefix = tl.full((), 0, tl.int64)
    for step in range(8):
        shift = 28 - 4 * step
        pivots = (prefix + (digits.to(tl.int64) << shift) - 2147483648).to(tl.int32)
        # Added up across threads only at the end.
        reach = tl.zeros((PIECE, _DIGITS), tl.float32 if MASS else tl.int32)
        for piece in range(PIECES):
            scaled, inside = scaled_piece(
                logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask,
                output_counts, row, line, slot, piece, peak, heat, V, PIECE,
            )  # fmt: skip
            reached = (ordered(scaled)[:, None] >= pivots[None, :]) & inside[:, None]
            if MASS:
                weights = tl.where(scaled >= least, tl.exp(scaled), 0.0)
                reach += tl.where(reached, weights[:, None], 0.0)
            else:
                reach += reached.to(tl.int32)
        enough = (tl.sum(reach, axis=0) >= wanted) | (digits == 0)
        prefix += tl.max(tl.where(enough, digits, 0), axis=0).to(tl.int64) << shift
    return from_ordered((prefix - 2147483648).to(tl.int32))


@triton.jit
def _mass(
    logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    row, line, slot, peak, heat, least, k,
    V: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Mass of the ``k`` largest, the least of which is ``least``; of equal ones as many as are left."""
    above = tl.zeros((PIECE,), tl.float32)
    count = tl.zeros((PIECE,), tl.int32)
    for piece in range(PIECES):
        scaled, inside = scaled_piece(
            logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
            row, line, slot, piece, peak, heat, V, PIECE,
        )  # fmt: skip
        larger = (scaled > least) & inside
        above += tl.where(larger, tl.exp(scaled), 0.0)
        count += larger.to(tl.int32)
    equal = tl.where(k < V, (k - tl.sum(count, axis=0)).to(tl.float32) * tl.exp(least), 0.0)
    return tl.sum(above, axis=0) + equal


@triton.jit
def _thresholds(
    logits, rows, slots,
    token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    peaks, temperature, top_k, top_p, min_p, kept, kept_from, left_mass, thresholds,
    V: tl.constexpr, PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr, KEPT: tl.constexpr, STEPS: tl.constexpr,
    STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The least scaled logit that a row keeps."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    if heat == 0:
        return
    line, slot = tl.load(rows + row), tl.load(slots + row)
    threshold = tl.full((), float("-inf"), tl.float32)
    if (top_k is not None) or (top_p is not None):
        k = tl.full((), V, tl.int64)
        p = tl.full((), 1.0, tl.float32)
        if top_k is not None:
            given = tl.load(top_k + row)
            k = tl.where(given > 0, tl.minimum(given, V), k)
        if top_p is not None:
            p = tl.load(top_p + row)
        if (k < V) | (p < 1.0):
            entries = tl.arange(0, PIECES_BLOCK * KEPT)
            pieces = tl.arange(0, PIECES_BLOCK)
            few = tl.load(kept + row * PIECES * KEPT + entries, mask=entries < PIECES * KEPT, other=float("-inf"))
            levels = tl.load(kept_from + row * PIECES + pieces, mask=pieces < PIECES, other=float("-inf"))
            level = tl.max(levels, axis=0)
            keys, masses = ordered(few), tl.exp(few)
            if k < V:
                threshold = _search_listed(keys, (few > float("-inf")).to(tl.int32), k)
            found = threshold
            if p < 1.0:
                if k < V:
                    larger = few > threshold
                    equal = (k - tl.sum(larger.to(tl.int32), axis=0)).to(tl.float32) * tl.exp(threshold)
                    total = tl.sum(tl.where(larger, masses, 0.0), axis=0) + equal
                else:
                    left = tl.load(left_mass + row * PIECES + pieces, mask=pieces < PIECES, other=0.0)
                    total = tl.sum(masses, axis=0) + tl.sum(left, axis=0)
                nucleus = _search_listed(keys, tl.where(few >= threshold, masses, 0.0), p * total)
                found = tl.where(threshold >= level, nucleus, threshold) if k < V else nucleus
                threshold = tl.maximum(threshold, nucleus)
            # A NaN, where the listed ones are not enough, fails too.
            if (found >= level) == 0:
                threshold = _search_all(
                    logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask,
                    output_counts, row, line, slot, row_peak(peaks, row, PIECES, PIECES_BLOCK), heat, k, p,
                    V, STEPS, STEP,
                )  # fmt: skip
    if min_p is not None:
        least = tl.load(min_p + row)
        if least > 0:
            threshold = tl.maximum(threshold, tl.log(least.to(tl.float64)).to(tl.float32))
    tl.store(thresholds + row, threshold)


@triton.jit
def _search_all(
    logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    row, line, slot, peak, heat, k, p,
    V: tl.constexpr, STEPS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The least scaled logit that top_k and top_p keep, whatever the row looks like."""
    threshold = tl.full((), float("-inf"), tl.float32)
    if k < V:
        threshold = _search(
            logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask,
            output_counts, row, line, slot, peak, heat, threshold, k, V, STEPS, STEP, False,
        )  # fmt: skip
    if p < 1.0:
        total = _mass(
            logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask,
            output_counts, row, line, slot, peak, heat, threshold, k, V, STEPS, STEP,
        )  # fmt: skip
        nucleus = _search(
            logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask,
            output_counts, row, line, slot, peak, heat, threshold, p * total, V, STEPS, STEP, True,
        )  # fmt: skip
        threshold = tl.maximum(threshold, nucleus)
    return threshold


def thresholds_triton(
    source: dict[str, Any], params: SampleParams, workspace: SampleWorkspace, count: int, vocab_size: int
) -> Tensor:
    """[count] fp32: the least logit that each row keeps, relative to its largest and divided by the temperature.

    Rows of temperature 0 have none: their elements are not written.

    Args:
        source: the logits, where each row's are, and the tables that penalise them, by the kernels' parameters.
        params: parameters of the rows, with top_k, top_p or min_p.
    """
    pieces = num_pieces(vocab_size)
    rows = {**source, "temperature": params.temperature, "peaks": workspace.peaks}
    cuts = {"top_k": params.top_k, "top_p": params.top_p}
    listed = {"kept": workspace.kept, "kept_from": workspace.kept_from, "left_mass": workspace.left_mass}
    cut = {"V": vocab_size, "PIECES": pieces, "PIECES_BLOCK": triton.next_power_of_2(pieces), "KEPT": KEPT}
    if params.top_k is not None or params.top_p is not None:
        shape = launch_shape("sample_piece")
        launch(_list_largest, (count, pieces), {**rows, **cuts, **listed}, {**cut, "PIECE": PIECE}, **shape)
    shape = launch_shape("sample_row", vocab_size=vocab_size)
    step = shape.pop("STEP")  # logits that the search among all takes at once, 16 counts each
    launch(
        _thresholds,
        (count,),
        {**rows, **cuts, **listed, "min_p": params.min_p, "thresholds": workspace.thresholds},
        {**cut, "STEPS": triton.cdiv(vocab_size, step), "STEP": step},
        **shape,
    )
    return workspace.thresholds
