"""``logprobs`` on a GPU, without a sort.

1. A program a reported token and piece of the vocabulary: largest logit, mass, how many are greater than the token's,
   and the piece's K greatest, one after the other.
2. A program a reported token puts the pieces together: the K greatest of the row are among those of its pieces.

K is a number of the launch, not of the kernel: nothing is compiled for it while serving. A token's logarithm is taken
in fp64 from a mass that fp32 exponentials are summed to in fp64, and rounded once.

Held against a plain sort in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor, empty, float32, float64, int32, int64

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.sample.params import LogprobsOut
from app.kernels.sample.scaled import ordered
from app.kernels.sample.workspace import MAX_TOP_LOGPROBS_TRITON, PIECE, num_pieces

_AT_ONCE = 64
"""Reported tokens of one launch: bounds the memory where pieces meet."""
_LOWEST: tl.constexpr = tl.constexpr(-(2**63))


@triton.jit
def _keys(x, ids):
    """Logits with their ids as int64: a greater logit is greater, of equal ones the lower id."""
    return (ordered(x).to(tl.int64) << 32) | (4294967295 - ids.to(tl.int64))


@triton.jit(do_not_specialize=["k"])
def _pieces(
    logits, rows, token_ids, peaks, masses, greater, faults, keys, k,
    V: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr, TOP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    wait_for_inputs(PDL)
    query, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = piece * PIECE + tl.arange(0, PIECE)
    inside = ids < V
    row = logits + tl.load(rows + query) * V
    x = tl.load(row + ids, mask=inside, other=float("-inf"))
    own = tl.load(row + tl.load(token_ids + query))
    bad = (x != x) | (x == float("inf"))
    good = tl.where(bad, float("-inf"), x)
    peak = tl.max(good, axis=0)
    # Where nothing is finite the difference would be a NaN.
    weights = tl.exp(good - tl.where(peak > float("-inf"), peak, 0.0))
    at = query * PIECES + piece
    tl.store(peaks + at, peak)
    tl.store(masses + at, tl.sum(weights.to(tl.float64), axis=0))
    tl.store(greater + at, tl.sum((x > own).to(tl.int32), axis=0))
    tl.store(faults + at, tl.max(bad.to(tl.int32), axis=0))
    left = tl.where(inside, _keys(x, ids), _LOWEST)
    for place in range(k):
        best = tl.max(left, axis=0)
        tl.store(keys + at * TOP + place, best)
        left = tl.where(left == best, _LOWEST, left)


@triton.jit(do_not_specialize=["k"])
def _report(
    logits, rows, token_ids, peaks, masses, greater, faults, keys, logprob, rank, top_ids, top_logprobs, k,
    V: tl.constexpr, PIECES: tl.constexpr, PIECES_BLOCK: tl.constexpr, TOP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    wait_for_inputs(PDL)
    query = tl.program_id(0).to(tl.int64)
    pieces = tl.arange(0, PIECES_BLOCK)
    inside = pieces < PIECES
    at = query * PIECES + pieces
    piece_peaks = tl.load(peaks + at, mask=inside, other=float("-inf"))
    peak = tl.max(piece_peaks, axis=0)
    fault = tl.max(tl.load(faults + at, mask=inside, other=0), axis=0)
    sound = (fault == 0) & (peak > float("-inf"))
    base = tl.where(sound, peak, 0.0).to(tl.float64)
    shares = tl.exp(tl.where(sound, piece_peaks, float("-inf")).to(tl.float64) - base)
    mass = tl.sum(tl.load(masses + at, mask=inside, other=0.0) * shares, axis=0)
    log_sum = tl.where(sound, tl.log(tl.where(sound, mass, 1.0)), float("nan"))
    row = logits + tl.load(rows + query) * V
    own = tl.load(row + tl.load(token_ids + query))
    tl.store(logprob + query, (own.to(tl.float64) - base - log_sum).to(tl.float32))
    tl.store(rank + query, tl.sum(tl.load(greater + at, mask=inside, other=0), axis=0).to(tl.int64) + 1)
    if k > 0:
        places = tl.arange(0, PIECES_BLOCK * TOP)
        theirs = (places // TOP < PIECES) & (places % TOP < k)
        left = tl.load(keys + query * PIECES * TOP + places, mask=theirs, other=_LOWEST)
        for place in range(k):
            best = tl.max(left, axis=0)
            token = 4294967295 - (best & 4294967295)
            value = tl.load(row + token)
            tl.store(top_ids + query * k + place, token)
            tl.store(
                top_logprobs + query * k + place,
                (value.to(tl.float64) - base - log_sum).to(tl.float32),
            )
            left = tl.where(left == best, _LOWEST, left)


def logprobs_triton(logits_LV: Tensor, rows_Q: Tensor, token_ids_Q: Tensor, out: LogprobsOut) -> None:
    """As the public ``logprobs``, of up to ``MAX_TOP_LOGPROBS_TRITON`` alternatives."""
    count, (_, vocab_size), k = rows_Q.numel(), logits_LV.shape, out.top_ids.shape[1]
    pieces, device = num_pieces(vocab_size), logits_LV.device
    size, cut = min(count, _AT_ONCE) * pieces, {"V": vocab_size, "PIECES": pieces, "TOP": MAX_TOP_LOGPROBS_TRITON}
    meeting = {
        "peaks": empty(size, dtype=float32, device=device),
        "masses": empty(size, dtype=float64, device=device),
        "greater": empty(size, dtype=int32, device=device),
        "faults": empty(size, dtype=int32, device=device),
        "keys": empty(size * MAX_TOP_LOGPROBS_TRITON, dtype=int64, device=device),
    }
    for first in range(0, count, _AT_ONCE):
        some = slice(first, min(first + _AT_ONCE, count))
        queries = {"logits": logits_LV, "rows": rows_Q[some], "token_ids": token_ids_Q[some], "k": k}
        grid = some.stop - first
        launch(_pieces, (grid, pieces), {**queries, **meeting}, {**cut, "PIECE": PIECE}, **launch_shape("sample_piece"))
        launch(
            _report,
            (grid,),
            {
                **queries,
                **meeting,
                "logprob": out.logprob[some],
                "rank": out.rank[some],
                "top_ids": out.top_ids[some],
                "top_logprobs": out.top_logprobs[some],
            },
            {**cut, "PIECES_BLOCK": triton.next_power_of_2(pieces)},
            num_warps=8,
            num_stages=1,
        )
