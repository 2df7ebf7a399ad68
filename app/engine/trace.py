"""The plan of every step as lines of the log (``--trace-step``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from app.contract.step import EncodeBatch, Plan, StepPlan

_log = logging.getLogger(__name__)


def log_plan(plan: Plan) -> None:
    """Logs a plan: a line for each row of a step, or one line for a batch to encode. No token is logged."""
    if isinstance(plan, EncodeBatch):
        _log.info("step %d: %d sequences, %d tokens to encode", plan.step, plan.num_sequences, plan.num_tokens)
        return
    for line in plan_lines(plan):
        _log.info("%s", line)


def plan_lines(plan: StepPlan) -> Iterator[str]:
    """Lines of a step's plan: a head line, then one for each row.

    A row's line has its slot, the position of its first token, its numbers of tokens and samples, and the entries that
    each KV group's block table gains.
    """
    bound = {init.slot for init in plan.slots}
    yield f"step {plan.step}: {len(plan.rows)} rows, {plan.num_tokens} tokens, {plan.num_logit_rows} rows of logits"
    for row in plan.rows:
        source = "device" if row.token_ids is None else "host"
        blocks = " | ".join(" ".join(map(str, block_ids)) or "-" for block_ids in row.new_block_ids) or "-"
        yield (
            f"step {plan.step}: slot {row.slot}{' (new)' if row.slot in bound else ''} start {row.start} "
            f"tokens {row.num_tokens} from {source} samples {row.num_samples} blocks {blocks}"
        )
