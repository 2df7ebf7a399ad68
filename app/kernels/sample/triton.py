"""``sample`` on a GPU, without a sort: every pass goes over the logits in pieces of a fixed size.

1. A program a piece: the largest penalised logit, its id, and whether a raw logit was a NaN or +inf.
2. Where a row cuts by top_k or top_p, a program a piece lists its largest logits: all above a level of its own.
3. Where it cuts at all, a program a row finds the least logit kept, a bit of its ordered form at a time, among those
   listed. Where that is below some piece's level (flat rows, high top_k), it looks through all logits, four bits at a
   time: a pass counts, for 15 values at once, what lies at or above each.
4. A program a piece: the largest of ``logit + gumbel`` among those kept.
5. A program a row puts the pieces together.

A row's token hangs on its own arguments alone, and pieces are met in one order. The noise is the reference's, taken in
fp64 and rounded; the mass of top_p is summed in fp32, in which a token right at the edge may fall on the other side.

Held against the definition in plain numbers in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to
sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.sample.params import SampleParams
from app.kernels.sample.workspace import KEPT, PIECE, num_pieces

_NO_ID: tl.constexpr = tl.constexpr(2147483647)
_DIGITS: tl.constexpr = tl.constexpr(16)
_STEP = 1024
"""Logits that the search for a threshold takes at once, 16 counts each."""
_RECORD_ROWS = 64
_LEVELS: tl.constexpr = tl.constexpr(8)
"""Below the largest logit, by 0.5 to 32."""


@triton.jit
def _penalized(
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
def _largest(value, ids):
    """(largest value, its lowest id); a NaN counts for nothing."""
    peak = tl.max(tl.where(value == value, value, float("-inf")), axis=0)
    return peak, tl.min(tl.where(value == peak, ids, _NO_ID), axis=0)


@triton.jit
def _peaks(
    logits, rows, slots,
    token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    peaks, peak_ids, faults,
    V: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = piece * PIECE + tl.arange(0, PIECE)
    inside = ids < V
    line, slot = tl.load(rows + row), tl.load(slots + row)
    raw, value = _penalized(
        logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
        row, line, slot, ids, inside, V,
    )  # fmt: skip
    peak, peak_id = _largest(value, ids)
    bad = (raw != raw) | (raw == float("inf")) | (value != value)
    at = row * PIECES + piece
    tl.store(peaks + at, peak)
    tl.store(peak_ids + at, peak_id)
    tl.store(faults + at, tl.max((bad & inside).to(tl.int32), axis=0))


@triton.jit
def _row_peak(peaks, row, PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr):
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
def _from_ordered(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _scaled_piece(
    logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    row, line, slot, piece, peak, heat,
    V: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """(logits over temperature, relative to the row's largest; whether they are of the vocabulary) of a piece."""
    ids = piece * PIECE + tl.arange(0, PIECE)
    inside = ids < V
    _, value = _penalized(
        logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
        row, line, slot, ids, inside, V,
    )  # fmt: skip
    # Relative to the largest, so that a tiny temperature cannot overflow it.
    return tl.div_rn(value - peak, heat), inside


@triton.jit
def _list_largest(
    logits, rows, slots,
    token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    peaks, temperature, top_k, top_p, kept, kept_from, left_mass,
    V: tl.constexpr, PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr, PIECE: tl.constexpr, KEPT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """All scaled logits of a piece above the lowest of a few levels that leaves at most KEPT; the mass of the rest."""
    wait_for_inputs(PDL)
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heat = tl.load(temperature + row)
    if (heat == 0) | _keeps_all(top_k, top_p, row):
        return
    line, slot = tl.load(rows + row), tl.load(slots + row)
    scaled, inside = _scaled_piece(
        logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
        row, line, slot, piece, _row_peak(peaks, row, PIECES, PIECES_BLOCK), heat, V, PIECE,
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
    """As :func:`_search`, among a row's listed logits: the ordered forms and what each counts for."""
    prefix = tl.full((), 0, tl.int64)
    for step in range(32):
        trial = prefix + (tl.full((), 1, tl.int64) << (31 - step))
        pivot = (trial - 2147483648).to(tl.int32)
        reach = tl.sum(tl.where(keys >= pivot, weights, weights * 0), axis=0)
        prefix = tl.where(reach >= wanted, trial, prefix)
    return _from_ordered((prefix - 2147483648).to(tl.int32))


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
            scaled, inside = _scaled_piece(
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
    return _from_ordered((prefix - 2147483648).to(tl.int32))


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
        scaled, inside = _scaled_piece(
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
                    output_counts, row, line, slot, _row_peak(peaks, row, PIECES, PIECES_BLOCK), heat, k, p,
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


@triton.jit
def _gumbel(seed, position, sample_index, piece, PIECE: tl.constexpr):
    """Standard Gumbel noise of a piece, from the words of Philox4x32-10 as the public ``sample`` says."""
    counters = (piece * (PIECE // 4) + tl.arange(0, PIECE // 4)).to(tl.uint32)
    zeros = counters * 0
    w0, w1, w2, w3 = tl.philox(
        seed, counters, zeros + position.to(tl.uint32), zeros + sample_index.to(tl.uint32), zeros, 10
    )
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    # 1 - u is exact in fp64, so that its logarithm is as good as log1p's.
    uniform = (words.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return (-tl.log(-tl.log(1.0 - uniform))).to(tl.float32)


@triton.jit
def _draws(
    logits, rows, slots,
    token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
    peaks, temperature, thresholds, seeds, positions, sample_indices, draws, draw_ids,
    V: tl.constexpr, PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr, PIECE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heat = tl.load(temperature + row)
    if heat == 0:
        return
    line, slot = tl.load(rows + row), tl.load(slots + row)
    scaled, inside = _scaled_piece(
        logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
        row, line, slot, piece, _row_peak(peaks, row, PIECES, PIECES_BLOCK), heat, V, PIECE,
    )  # fmt: skip
    if thresholds is not None:
        scaled = tl.where(scaled >= tl.load(thresholds + row), scaled, float("-inf"))
    noise = _gumbel(tl.load(seeds + row), tl.load(positions + row), tl.load(sample_indices + row), piece, PIECE)
    best, best_id = _largest(tl.where(inside, scaled + noise, float("-inf")), piece * PIECE + tl.arange(0, PIECE))
    tl.store(draws + row * PIECES + piece, best)
    tl.store(draw_ids + row * PIECES + piece, best_id)


@triton.jit
def _choose(
    peaks, peak_ids, faults, draws, draw_ids, temperature, out, failed,
    PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    pieces = tl.arange(0, PIECES_BLOCK)
    inside = pieces < PIECES
    at = row * PIECES + pieces
    fault = tl.max(tl.load(faults + at, mask=inside, other=0), axis=0)
    values = tl.load(peaks + at, mask=inside, other=float("-inf"))
    ids = tl.load(peak_ids + at, mask=inside, other=_NO_ID)
    peak, chosen = _largest(values, ids)
    wrong = (fault != 0) | (peak == float("-inf")) | (peak == float("inf"))
    if (tl.load(temperature + row) != 0) & (wrong == 0):
        values = tl.load(draws + at, mask=inside, other=float("-inf"))
        ids = tl.load(draw_ids + at, mask=inside, other=_NO_ID)
        _, chosen = _largest(values, ids)
    tl.store(failed + row, wrong)
    tl.store(out + row, tl.where(wrong, 0, chosen).to(tl.int64))


def sample_triton(logits_LV: Tensor, params: SampleParams, out_R: Tensor, failed_R: Tensor) -> None:
    """As the public ``sample``; needs ``params.workspace``."""
    count, vocab_size = out_R.numel(), logits_LV.shape[1]
    workspace = params.workspace
    if workspace is None or workspace.peaks.numel() < count * num_pieces(vocab_size):
        raise ValueError(f"sample: Triton needs a workspace for {count} rows of {vocab_size} logits")
    pieces = num_pieces(vocab_size)
    penalties, min_tokens = params.penalties, params.min_tokens
    tables = {
        "token_mask": params.token_mask,
        "stop_mask": min_tokens.stop_mask if min_tokens else None,
        "active": min_tokens.active if min_tokens else None,
        "bias": params.logit_bias,
        "repetition": penalties.repetition if penalties else None,
        "presence": penalties.presence if penalties else None,
        "frequency": penalties.frequency if penalties else None,
        "prompt_mask": penalties.prompt_mask if penalties else None,
        "output_counts": penalties.output_counts if penalties else None,
    }
    source = {"logits": logits_LV, "rows": params.rows, "slots": params.slots, **tables}
    peaks = {"peaks": workspace.peaks, "peak_ids": workspace.peak_ids, "faults": workspace.faults}
    draws = {"draws": workspace.draws, "draw_ids": workspace.draw_ids}
    heat = {"temperature": params.temperature}
    cut = {"V": vocab_size, "PIECES": pieces, "PIECE": PIECE}
    block = {"PIECES_BLOCK": triton.next_power_of_2(pieces)}
    tuned = launch_shape("sample_piece")
    launch(_peaks, (count, pieces), {**source, **peaks}, cut, **tuned)
    thresholds = None
    if params.top_k is not None or params.top_p is not None or params.min_p is not None:
        thresholds = workspace.thresholds
        cuts = {"top_k": params.top_k, "top_p": params.top_p}
        listed = {"kept": workspace.kept, "kept_from": workspace.kept_from, "left_mass": workspace.left_mass}
        if params.top_k is not None or params.top_p is not None:
            tables = {**source, **heat, **cuts, **listed, "peaks": workspace.peaks}
            launch(_list_largest, (count, pieces), tables, {**cut, **block, "KEPT": KEPT}, **tuned)
        launch(
            _thresholds,
            (count,),
            {
                **source,
                **heat,
                **cuts,
                **listed,
                "min_p": params.min_p,
                "peaks": workspace.peaks,
                "thresholds": thresholds,
            },
            {
                "V": vocab_size,
                "PIECES": pieces,
                **block,
                "KEPT": KEPT,
                "STEPS": triton.cdiv(vocab_size, _STEP),
                "STEP": _STEP,
            },
            **launch_shape("sample_row"),
        )
    keys = {"seeds": params.seeds, "positions": params.positions, "sample_indices": params.sample_indices}
    launch(
        _draws,
        (count, pieces),
        {**source, **heat, **keys, **draws, "peaks": workspace.peaks, "thresholds": thresholds},
        {**cut, **block},
        **tuned,
    )
    chosen = {"out": out_R, "failed": failed_R}
    launch(_choose, (count,), {**peaks, **draws, **heat, **chosen}, {"PIECES": pieces, **block}, num_warps=1)


@triton.jit
def _record_tokens(
    token_ids, slots, last_token, output_counts, num_rows, V: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_inputs(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    token, slot = tl.load(token_ids + row, mask=inside, other=0), tl.load(slots + row, mask=inside, other=0)
    tl.store(last_token + slot, token, mask=inside)
    if output_counts is not None:
        at = output_counts + slot * V + token
        tl.store(at, tl.load(at, mask=inside, other=0) + 1, mask=inside)


def record_tokens_triton(
    token_ids_R: Tensor, slots_R: Tensor, last_token_S: Tensor, output_counts_SV: Tensor | None
) -> None:
    """As the public ``record_tokens``; of rows of one slot, which only pad a step, one counts."""
    rows = token_ids_R.numel()
    launch(
        _record_tokens,
        (triton.cdiv(rows, _RECORD_ROWS),),
        {
            "token_ids": token_ids_R,
            "slots": slots_R,
            "last_token": last_token_S,
            "output_counts": output_counts_SV,
            "num_rows": rows,
        },
        {"V": 0 if output_counts_SV is None else output_counts_SV.shape[1], "BLOCK": _RECORD_ROWS},
        num_warps=1,
        num_stages=1,
    )
