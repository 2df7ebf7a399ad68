"""Bindings of the native ``sample``, ``record`` and ``logprobs``."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit, pool
from app.kernels.sample.params import LogprobsOut, SampleParams

MAX_TOP_LOGPROBS = 1024
"""TUILI_MAX_TOP_LOGPROBS."""
_PADDING = 64
"""TUILI_SAMPLE_PADDING."""


def sample_cpu(logits_LV: Tensor, params: SampleParams, out_R: Tensor, failed_R: Tensor) -> None:
    vocab_size = logits_LV.shape[1]
    penalties, min_tokens = params.penalties, params.min_tokens
    call = Call(
        "sample",
        Dim.SAMPLES,
        logits=logits_LV,
        rows=params.rows,
        slots=params.slots,
        temperature=params.temperature,
        seeds=params.seeds,
        positions=params.positions,
        sample_indices=params.sample_indices,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=penalties.repetition if penalties else None,
        presence=penalties.presence if penalties else None,
        frequency=penalties.frequency if penalties else None,
        prompt_mask=penalties.prompt_mask if penalties else None,
        output_counts=penalties.output_counts if penalties else None,
        min_tokens_active=min_tokens.active if min_tokens else None,
        stop_mask=min_tokens.stop_mask if min_tokens else None,
        logit_bias=params.logit_bias,
        token_mask=params.token_mask,
        out=out_R,
        failed=failed_R,
        workspace=torch.empty(pool().threads, 3 * vocab_size + _PADDING),
        vocab_size=vocab_size,
    )
    emit([call], logits=logits_LV.shape[0], samples=out_R.numel())


def record_tokens_cpu(
    token_ids_R: Tensor, slots_R: Tensor, last_token_S: Tensor, output_counts_SV: Tensor | None
) -> None:
    call = Call(
        "record",
        Dim.SAMPLES,
        token_ids=token_ids_R,
        slots=slots_R,
        last_token=last_token_S,
        output_counts=output_counts_SV,
        vocab_size=output_counts_SV.shape[1] if output_counts_SV is not None else 0,
    )
    emit([call], samples=token_ids_R.numel())


def logprobs_cpu(logits_LV: Tensor, rows_Q: Tensor, token_ids_Q: Tensor, out: LogprobsOut) -> None:
    call = Call(
        "logprobs",
        Dim.SAMPLES,
        logits=logits_LV,
        rows=rows_Q,
        token_ids=token_ids_Q,
        logprob=out.logprob,
        rank=out.rank,
        top_ids=out.top_ids,
        top_logprobs=out.top_logprobs,
        vocab_size=logits_LV.shape[1],
        k=out.top_ids.shape[1],
    )
    emit([call], samples=rows_Q.numel())
