"""Hand-made scheduler outputs."""

from __future__ import annotations

from collections.abc import Sequence

from app.contract.request import SamplingParams
from app.contract.step import ScheduledRow, SlotInit, StepPlan

GREEDY = SamplingParams(temperature=0.0)


def slot_of(
    slot: int,
    prompt: Sequence[int],
    params: SamplingParams = GREEDY,
    *,
    seed: int = 0,
    outputs: Sequence[int] = (),
    adapter: int = -1,
) -> SlotInit:
    """Binds ``slot`` to a request, which had generated ``outputs`` before it was preempted."""
    return SlotInit(
        slot=slot,
        sampling=params,
        seed=seed,
        sample_index=0,
        prompt_len=len(prompt),
        stop_token_ids=[],
        prompt_token_ids=list(prompt),
        output_token_ids=list(outputs),
        adapter=adapter,
    )


def row_of(
    slot: int,
    start: int,
    token_ids: Sequence[int] | None,
    *,
    blocks: Sequence[int] = (),
    groups: Sequence[Sequence[int]] | None = None,
    num_logits: int | None = None,
    num_samples: int = 1,
    targets: Sequence[int] = (),
) -> ScheduledRow:
    """``token_ids`` from position ``start``, or the one token on the device; logits for the last ``num_logits``.

    New ``blocks`` are those of the one group that there is, unless each of several ``groups`` has its own.
    """
    num_tokens = 1 if token_ids is None else len(token_ids)
    wanted = num_samples + len(targets) if num_logits is None else num_logits
    return ScheduledRow(
        slot=slot,
        start=start,
        num_tokens=num_tokens,
        token_ids=None if token_ids is None else list(token_ids),
        new_block_ids=[list(ids) for ids in ([blocks] if groups is None else groups)],
        logits_start=num_tokens - wanted,
        num_samples=num_samples,
        logprob_targets=list(targets),
    )


def step_of(rows: Sequence[ScheduledRow], slots: Sequence[SlotInit] = (), *, step: int = 0) -> StepPlan:
    """One step of ``rows`` that binds ``slots`` first."""
    return StepPlan(
        step=step,
        slots=list(slots),
        rows=list(rows),
        num_tokens=sum(row.num_tokens for row in rows),
        num_logit_rows=sum(row.num_tokens - row.logits_start for row in rows),
    )
