"""``sample`` on a GPU, without a sort: every pass goes over the logits in pieces of a fixed size.

1. A program a piece: the largest penalised logit, its id, and whether a raw logit was a NaN or +inf.
2. Where a row cuts by top_k, top_p or min_p, ``thresholds`` finds the least logit kept.
3. A program a piece: the largest of ``logit + gumbel`` among those kept.
4. A program a row puts the pieces together.

A row's token depends on its own arguments alone, and pieces are combined in one order. The noise is the reference's,
computed in fp64 and rounded.

Held against the definition in plain numbers in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to
sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.sample.params import SampleParams
from app.kernels.sample.scaled import penalized, row_peak, scaled_piece
from app.kernels.sample.workspace import PIECE, num_pieces
from app.kernels.thresholds.triton import thresholds_triton

_NO_ID: tl.constexpr = tl.constexpr(2147483647)
_RECORD_ROWS = 64


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
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = piece * PIECE + tl.arange(0, PIECE)
    inside = ids < V
    line, slot = tl.load(rows + row), tl.load(slots + row)
    raw, value = penalized(
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
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heat = tl.load(temperature + row)
    if heat == 0:
        return
    line, slot = tl.load(rows + row), tl.load(slots + row)
    scaled, inside = scaled_piece(
        logits, token_mask, stop_mask, active, bias, repetition, presence, frequency, prompt_mask, output_counts,
        row, line, slot, piece, row_peak(peaks, row, PIECES, PIECES_BLOCK), heat, V, PIECE,
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
    let_next_start(PDL)
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
        thresholds = thresholds_triton(source, params, workspace, count, vocab_size)
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
    let_next_start(PDL)
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
