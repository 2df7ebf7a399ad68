"""Specification of ``sample``, ``logprobs`` and ``record_tokens`` in plain torch.

A row's result must not depend on other rows, not even in the last bit. Hence: transcendental functions whose
vectorised and scalar code differ in fp32 are taken in fp64 and rounded, reductions run along whole rows, and the
running mass of top-p is summed in descending order, whatever the number of values looked at.

Shape suffixes beyond those of ``params``: N rows in work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.sample.params import LogprobsOut, Penalties, SampleParams
from app.kernels.sample.philox import philox4x32

_LOGITS_AT_ONCE = 1 << 19
"""Logits whose temporaries live at the same time: bounds memory, keeps them in the cache."""
_TOP_P_WIDTH = 1024
"""Values that top-p looks at first: nearly always enough, and far quicker than sorting the vocabulary."""


def sample_reference(logits_LV: Tensor, params: SampleParams, out_R: Tensor, failed_R: Tensor) -> None:
    logits_RV = logits_LV.index_select(0, params.rows)
    finite_R = logits_RV.amax(dim=-1).isfinite()
    _mask(logits_RV, params)
    if params.logit_bias is not None:
        logits_RV += params.logit_bias.index_select(0, params.slots)
    if params.penalties is not None:
        _penalize(logits_RV, params.penalties, params.slots)
    best = logits_RV.max(dim=-1)
    torch.logical_not(finite_R & best.values.isfinite(), out=failed_R)
    out_R.copy_(best.indices.masked_fill(failed_R, 0))
    sampled = torch.nonzero((params.temperature > 0) & ~failed_R).squeeze(1)
    for rows_N in _batches(sampled, logits_RV):
        # Relative to the maximum, so that a tiny temperature cannot overflow it.
        scaled_NV = logits_RV[rows_N] - best.values[rows_N, None]
        scaled_NV /= params.temperature[rows_N, None]
        scaled_NV.masked_fill_(scaled_NV < _threshold(scaled_NV, params, rows_N)[:, None], float("-inf"))
        scaled_NV += _gumbel(params, rows_N, scaled_NV.shape[1])
        out_R[rows_N] = scaled_NV.max(dim=-1).indices


def _batches(rows: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
    """Row indices in batches of a bounded number of logits."""
    return torch.split(rows, max(1, _LOGITS_AT_ONCE // logits.shape[1]))


def _mask(logits_RV: Tensor, params: SampleParams) -> None:
    """The token mask and min_tokens."""
    vocab_size = logits_RV.shape[1]
    if params.token_mask is not None:
        words_RW = params.token_mask.index_select(0, params.slots)
        bits = torch.arange(32, dtype=torch.int32, device=words_RW.device)
        allowed_RV = (words_RW.unsqueeze(2) >> bits & 1).flatten(1)[:, :vocab_size] == 1
        logits_RV.masked_fill_(~allowed_RV, float("-inf"))
    if params.min_tokens is not None:
        stops_RV = params.min_tokens.stop_mask.index_select(0, params.slots)
        logits_RV.masked_fill_(stops_RV & params.min_tokens.active[:, None], float("-inf"))


def _penalize(logits_RV: Tensor, penalties: Penalties, slots_R: Tensor) -> None:
    used_R = (penalties.repetition != 1) | (penalties.presence != 0) | (penalties.frequency != 0)
    for rows_N in _batches(torch.nonzero(used_R).squeeze(1), logits_RV):
        logits_NV, slots_N = logits_RV[rows_N], slots_R[rows_N]
        counts_NV = penalties.output_counts[slots_N]
        seen_NV = penalties.prompt_mask[slots_N] | (counts_NV > 0)
        repetition_N1 = penalties.repetition[rows_N, None]
        penalized_NV = torch.where(logits_NV > 0, logits_NV / repetition_N1, logits_NV * repetition_N1)
        logits_NV = torch.where(seen_NV, penalized_NV, logits_NV)
        logits_NV -= penalties.frequency[rows_N, None] * counts_NV
        logits_NV -= penalties.presence[rows_N, None] * (counts_NV > 0)
        logits_RV[rows_N] = logits_NV


def _threshold(scaled_NV: Tensor, params: SampleParams, rows_N: Tensor) -> Tensor:
    """[N]: the least logit that top_k, top_p and min_p keep. Logits are relative to their maximum."""
    vocab_size = scaled_NV.shape[1]
    threshold_N = torch.full(rows_N.shape, float("-inf"), device=scaled_NV.device)
    k_N = torch.full_like(rows_N, vocab_size)
    if params.top_k is not None:
        given_N = params.top_k[rows_N]
        k_N = torch.where(given_N > 0, given_N, k_N).clamp(max=vocab_size)
    p_N = params.top_p[rows_N] if params.top_p is not None else torch.ones_like(threshold_N)
    cut = torch.nonzero((k_N < vocab_size) | (p_N < 1)).squeeze(1)
    if cut.numel():
        threshold_N[cut] = _top_k_top_p(scaled_NV[cut], k_N[cut], p_N[cut])
    if params.min_p is not None:
        threshold_N = torch.maximum(threshold_N, params.min_p[rows_N].double().log().float())
    return threshold_N


def _top_k_top_p(scaled_NV: Tensor, k_N: Tensor, p_N: Tensor) -> Tensor:
    """[N]: the least of the k greatest logits whose preceding ones do not yet hold a p-th of the k's mass."""
    vocab_size = scaled_NV.shape[1]
    probs_NV = scaled_NV.softmax(dim=-1)
    limited_N = k_N < vocab_size
    width = min(vocab_size, int(torch.where(limited_N, k_N, _TOP_P_WIDTH).max()))
    while True:
        top = scaled_NV.topk(width, dim=-1)
        mass_NW = probs_NV.gather(1, top.indices).double().cumsum(dim=-1)
        last_N1 = k_N.clamp(max=width)[:, None] - 1
        if width == vocab_size or bool((limited_N | (mass_NW[:, -1] >= p_N)).all()):
            break
        width = vocab_size
    total_N1 = torch.where(limited_N[:, None], mass_NW.gather(1, last_N1), 1.0)
    before_NW = mass_NW.roll(1, dims=-1)
    before_NW[:, 0] = 0
    within_p = (before_NW < p_N[:, None] * total_N1) | (p_N >= 1)[:, None]
    kept_N1 = torch.minimum(within_p.sum(dim=-1, keepdim=True) - 1, last_N1).clamp(min=0)
    return top.values.gather(1, kept_N1).squeeze(1)


def _gumbel(params: SampleParams, rows_N: Tensor, vocab_size: int) -> Tensor:
    """[N, V] fp32 standard Gumbel noise, finite: the words' half offset keeps both logarithms off their poles."""
    seeds_N1 = params.seeds[rows_N, None]
    counters = torch.arange(-(-vocab_size // 4), device=seeds_N1.device).unsqueeze(0)
    words = philox4x32(
        (counters, params.positions[rows_N, None], params.sample_indices[rows_N, None], torch.zeros_like(seeds_N1)),
        (seeds_N1 & 0xFFFFFFFF, seeds_N1 >> 32 & 0xFFFFFFFF),
    )
    uniform_NV = torch.stack(words, dim=-1).flatten(1)[:, :vocab_size].double().add_(0.5).mul_(-(2.0**-32))
    return uniform_NV.log1p_().neg_().log_().neg_().float()


def logprobs_reference(logits_LV: Tensor, rows_Q: Tensor, token_ids_Q: Tensor, out: LogprobsOut) -> None:
    for queries in _batches(torch.arange(rows_Q.numel(), device=rows_Q.device), logits_LV):
        logits_NV = logits_LV[rows_Q[queries]]
        logprobs_NV = logits_NV.log_softmax(dim=-1)
        ids_N1 = token_ids_Q[queries, None]
        top_ids_NK = _top_ids(logits_NV, out.top_ids.shape[1])
        out.logprob[queries] = logprobs_NV.gather(1, ids_N1).squeeze(1)
        out.rank[queries] = (logits_NV > logits_NV.gather(1, ids_N1)).sum(dim=-1) + 1
        out.top_ids[queries] = top_ids_NK
        out.top_logprobs[queries] = logprobs_NV.gather(1, top_ids_NK)


def _top_ids(logits_NV: Tensor, k: int) -> Tensor:
    """[N, k] ids of the greatest logits; topk alone leaves the order of equal ones open.

    The bits of a float, negative ones turned around, order as integers do; below them stands the id, reversed.
    """
    if k == 0:
        return torch.empty(logits_NV.shape[0], 0, dtype=torch.int64, device=logits_NV.device)
    vocab_size = logits_NV.shape[1]
    bits = (logits_NV + 0.0).view(torch.int32)  # the sum turns -0.0 into 0.0, its equal
    ordered = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()
    keys = ordered << 32 | torch.arange(vocab_size - 1, -1, -1, device=logits_NV.device)
    return vocab_size - 1 - (keys.topk(k, dim=-1).values & 0xFFFFFFFF)


def record_tokens_reference(
    token_ids_R: Tensor, slots_R: Tensor, last_token_S: Tensor, output_counts_SV: Tensor | None
) -> None:
    last_token_S[slots_R] = token_ids_R
    if output_counts_SV is not None:
        output_counts_SV[slots_R, token_ids_R] += 1
