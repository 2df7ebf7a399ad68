"""Sampling: the next token of each row, the log-probabilities to report, and the bookkeeping of both."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import fall_back, native, runs_triton
from app.kernels.sample.cpu import (
    MAX_TOP_LOGPROBS,
    logprobs_cpu,
    record_tokens_cpu,
    sample_cpu,
)
from app.kernels.sample.params import LogprobsOut, MinTokens, Penalties, SampleParams
from app.kernels.sample.reference import (
    logprobs_reference,
    record_tokens_reference,
    sample_reference,
)
from app.kernels.sample.workspace import MAX_TOP_LOGPROBS_TRITON

__all__ = [
    "LogprobsOut",
    "MinTokens",
    "Penalties",
    "SampleParams",
    "logprobs",
    "record_tokens",
    "sample",
]


def sample(logits_LV: Tensor, params: SampleParams, out_R: Tensor, failed_R: Tensor) -> None:
    """Samples one token a row by the Gumbel-max rule.

    In this order: token mask; stop tokens masked below min_tokens; logit bias; repetition, then frequency and
    presence penalty; division by temperature; top_k, top_p (over what top_k left), min_p; argmax of
    ``logit + gumbel``. With temperature 0 it is the argmax of the penalised logits, the lowest id among equals.

    top_k and top_p cut by value: tokens equal to the last one kept are kept too. The Gumbel noise of token v is
    ``-log(-log1p(-(word + 0.5) * 2^-32))``, the word being lane v % 4 of Philox4x32-10 with the row's seed as key
    (low word first) and counter (v // 4, position, sample index, 0). A row's token depends on its own arguments
    alone, bit for bit.

    Args:
        logits_LV: [L, V] fp32, not changed.
        params: parameters of the R rows to sample.
        out_R: [R] int64, the tokens.
        failed_R: [R] bool: the row's logits hold a NaN or +inf, or nothing finite is left of them; its token is 0.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    count, vocab_size = params.rows.numel(), logits_LV.shape[-1]
    check_tensor("sample", "logits", logits_LV, (logits_LV.shape[0], vocab_size), torch.float32)
    for name, vector in (
        ("rows", params.rows),
        ("slots", params.slots),
        ("seeds", params.seeds),
        ("positions", params.positions),
        ("sample_indices", params.sample_indices),
        ("out", out_R),
    ):
        check_tensor("sample", name, vector, (count,), torch.int64)
    check_tensor("sample", "temperature", params.temperature, (count,), torch.float32)
    check_tensor("sample", "failed", failed_R, (count,), torch.bool)
    _check_filters(params, count)
    _check_tables(params, vocab_size)
    if runs_triton(logits_LV):
        from app.kernels.sample.triton import sample_triton  # only a GPU needs Triton

        sample_triton(logits_LV, params, out_R, failed_R)
    elif native("sample", logits_LV):
        sample_cpu(logits_LV, params, out_R, failed_R)
    else:
        sample_reference(logits_LV, params, out_R, failed_R)


def _check_filters(params: SampleParams, count: int) -> None:
    if params.top_k is not None:
        check_tensor("sample", "top_k", params.top_k, (count,), torch.int64)
    if params.top_p is not None:
        check_tensor("sample", "top_p", params.top_p, (count,), torch.float32)
    if params.min_p is not None:
        check_tensor("sample", "min_p", params.min_p, (count,), torch.float32)
    if params.min_tokens is not None:
        check_tensor("sample", "min_tokens.active", params.min_tokens.active, (count,), torch.bool)
    if params.penalties is not None:
        check_tensor("sample", "repetition", params.penalties.repetition, (count,), torch.float32)
        check_tensor("sample", "presence", params.penalties.presence, (count,), torch.float32)
        check_tensor("sample", "frequency", params.penalties.frequency, (count,), torch.float32)


def _check_tables(params: SampleParams, vocab_size: int) -> None:
    def check(name: str, table: Tensor, width: int, dtype: torch.dtype) -> None:
        check_tensor("sample", name, table, (table.shape[0], width), dtype)

    if params.penalties is not None:
        check("prompt_mask", params.penalties.prompt_mask, vocab_size, torch.bool)
        check("output_counts", params.penalties.output_counts, vocab_size, torch.int32)
    if params.min_tokens is not None:
        check("stop_mask", params.min_tokens.stop_mask, vocab_size, torch.bool)
    if params.logit_bias is not None:
        check("logit_bias", params.logit_bias, vocab_size, torch.float32)
    if params.token_mask is not None:
        check("token_mask", params.token_mask, -(-vocab_size // 32), torch.int32)


def logprobs(logits_LV: Tensor, rows_Q: Tensor, token_ids_Q: Tensor, out: LogprobsOut) -> None:
    """Log-probabilities of given tokens, and of the K most likely ones beside them.

    ``rank`` is 1 + the number of strictly greater logits. The top list is ordered by logit, equal ones by id. A token
    has the same float in its own right and in a top list.

    Args:
        logits_LV: [L, V] fp32.
        rows_Q: [Q] int64, row of logits of each reported token.
        token_ids_Q: [Q] int64, each below V (not checked here).
        out: K is the width of its top list and may be 0.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    count, width = rows_Q.numel(), out.top_ids.shape[-1]
    check_tensor("logprobs", "logits", logits_LV, (logits_LV.shape[0], logits_LV.shape[-1]), torch.float32)
    check_tensor("logprobs", "rows", rows_Q, (count,), torch.int64)
    check_tensor("logprobs", "token_ids", token_ids_Q, (count,), torch.int64)
    check_tensor("logprobs", "out.logprob", out.logprob, (count,), torch.float32)
    check_tensor("logprobs", "out.rank", out.rank, (count,), torch.int64)
    check_tensor("logprobs", "out.top_ids", out.top_ids, (count, width), torch.int64)
    check_tensor("logprobs", "out.top_logprobs", out.top_logprobs, (count, width), torch.float32)
    if width > logits_LV.shape[1]:
        raise ValueError(f"logprobs: {width} alternatives of a vocabulary of {logits_LV.shape[1]}")
    on_triton = runs_triton(logits_LV)
    most = MAX_TOP_LOGPROBS_TRITON if on_triton else MAX_TOP_LOGPROBS
    if width > most:
        fall_back("logprobs", f"{width} alternatives are more than {most}")
        logprobs_reference(logits_LV, rows_Q, token_ids_Q, out)
    elif on_triton:
        from app.kernels.logprobs.triton import logprobs_triton  # only a GPU needs Triton

        logprobs_triton(logits_LV, rows_Q, token_ids_Q, out)
    elif native("logprobs", logits_LV):
        logprobs_cpu(logits_LV, rows_Q, token_ids_Q, out)
    else:
        logprobs_reference(logits_LV, rows_Q, token_ids_Q, out)


def record_tokens(
    token_ids_R: Tensor, slots_R: Tensor, last_token_S: Tensor, output_counts_SV: Tensor | None = None
) -> None:
    """Notes each row's token as its slot's last one, and counts it for the penalties.

    Args:
        token_ids_R: [R] int64.
        slots_R: [R] int64. Equal ones verify drafts or pad a step: what is noted and counted for these is left open.
        last_token_S: [S] int64.
        output_counts_SV: [S, V] int32.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    check_tensor("record_tokens", "token_ids", token_ids_R, (token_ids_R.numel(),), torch.int64)
    check_tensor("record_tokens", "slots", slots_R, (token_ids_R.numel(),), torch.int64)
    check_tensor("record_tokens", "last_token", last_token_S, (last_token_S.numel(),), torch.int64)
    if output_counts_SV is not None:
        shape = (last_token_S.numel(), output_counts_SV.shape[-1])
        check_tensor("record_tokens", "output_counts", output_counts_SV, shape, torch.int32)
    if runs_triton(last_token_S):
        from app.kernels.sample.triton import record_tokens_triton  # only a GPU needs Triton

        record_tokens_triton(token_ids_R, slots_R, last_token_S, output_counts_SV)
    elif native("record_tokens", last_token_S):
        record_tokens_cpu(token_ids_R, slots_R, last_token_S, output_counts_SV)
    else:
        record_tokens_reference(token_ids_R, slots_R, last_token_S, output_counts_SV)
