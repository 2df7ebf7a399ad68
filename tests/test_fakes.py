"""The fake runner notices what the step contract forbids; a fake that accepts everything would prove nothing."""

from __future__ import annotations

from typing import Any

import pytest

from app.contract.request import SamplingParams
from app.contract.step import RowOutput, ScheduledRow, SlotInit, StepPlan, StepResult
from tests.fake_pages import StepContractError
from tests.fakes import FakeRunner, expected_tokens

PROMPT = [1, 2, 3, 4, 5]
FIRST = expected_tokens(PROMPT, 1)[0]


def init(slot: int = 0, **sampling: Any) -> SlotInit:
    return SlotInit(
        slot=slot,
        sampling=SamplingParams(**sampling),
        seed=0,
        sample_index=0,
        prompt_len=len(PROMPT),
        stop_token_ids=[],
    )


def row(start: int = 0, tokens: list[int] | None = PROMPT, blocks: tuple[int, ...] = (), **fields: Any) -> ScheduledRow:
    num_tokens = 1 if tokens is None else len(tokens)
    values = {"slot": 0, "num_tokens": num_tokens, "logits_start": num_tokens - 1, "num_samples": 1, **fields}
    return ScheduledRow(start=start, token_ids=tokens, new_block_ids=[list(blocks)], **values)


def step(number: int, *rows: ScheduledRow, slots: tuple[SlotInit, ...] = (), **fields: Any) -> StepPlan:
    values = {
        "num_tokens": sum(entry.num_tokens for entry in rows),
        "num_logit_rows": sum(entry.num_tokens - entry.logits_start for entry in rows),
        **fields,
    }
    return StepPlan(step=number, slots=list(slots), rows=list(rows), **values)


def started() -> tuple[FakeRunner, int]:
    """A runner after one prompt, and the token that it sampled."""
    runner = FakeRunner(block_size=4)
    return runner, collected(runner, runner.submit(step(0, row(blocks=(3, 1)), slots=(init(),)))).token_ids[0]


def collected(runner: FakeRunner, handle: Any) -> RowOutput:
    """The one row of a step."""
    result = runner.collect(handle)
    assert isinstance(result, StepResult)
    return result.rows[0]


def test_tokens_come_from_the_host_or_from_the_device() -> None:
    for source in ("host", "device"):
        runner, first = started()
        handle = runner.submit(step(1, row(5, [first] if source == "host" else None)))
        assert [first, *collected(runner, handle).token_ids] == expected_tokens(PROMPT, 2)


def test_right_drafts_are_accepted_and_wrong_ones_are_not() -> None:
    runner, first = started()
    text = expected_tokens(PROMPT, 4)
    handle = runner.submit(step(1, row(5, [first, text[1], 999], num_samples=3, logits_start=0)))
    assert collected(runner, handle).token_ids == text[1:3]
    assert (runner.num_accepted_drafts, runner.num_rejected_drafts) == (1, 1)


VIOLATIONS: dict[str, StepPlan] = {
    "without rows": step(1),
    "step ids do not grow": step(0, row(5, None)),
    "num_tokens is not": step(1, row(5, None), num_tokens=2),
    "num_logit_rows is not": step(1, row(5, None), num_logit_rows=0),
    "has two rows": step(1, row(5, None), row(6, None)),
    "not bound": step(1, row(5, None, slot=1)),
    "bound without a row": step(1, row(5, None), slots=(init(1),)),
    "starts at 6, computed: 5": step(1, row(6, [7])),
    "starts at 4, computed: 5": step(1, row(4, [5])),
    "does not go on with": step(1, row(5, [FIRST + 1])),
    "no token on the device": step(1, row(5, None, num_tokens=2, logits_start=1)),
    "no block to write to": step(1, row(5, [FIRST, 1, 2, 3])),
    "names a block twice": step(1, row(5, None, blocks=(3,))),
    "targets do not match": step(1, row(5, None, logprob_targets=[1])),
    "position 0 is not in its page: None": step(1, row(4, [5], blocks=(7, 8), slot=1), slots=(init(1),)),
    "position 0 is not in its page: .4, 5": step(1, row(4, [5], blocks=(1, 8), slot=1), slots=(init(1),)),
}


@pytest.mark.parametrize(("message", "bad"), VIOLATIONS.items(), ids=VIOLATIONS.keys())
def test_violations_of_the_contract_are_noticed(message: str, bad: StepPlan) -> None:
    runner, _ = started()
    with pytest.raises(StepContractError, match=message):
        runner.submit(bad)


def test_a_block_overwritten_by_another_slot_is_noticed() -> None:
    runner, _ = started()
    runner.submit(step(1, row(0, [9, 9], blocks=(3,), slot=1), slots=(init(1),)))
    with pytest.raises(StepContractError, match="context changed"):
        runner.submit(step(2, row(5, None)))


def test_what_a_failed_step_left_is_not_read() -> None:
    runner = FakeRunner(block_size=4, fail_collect=lambda entry: entry.step == 0)
    handle = runner.submit(step(0, row(blocks=(3, 1)), slots=(init(),)))
    with pytest.raises(RuntimeError):
        runner.collect(handle)
    with pytest.raises(StepContractError, match="not bound"):
        runner.submit(step(1, row(5, None)))
    with pytest.raises(StepContractError, match="failed step"):
        runner.submit(step(2, row(4, [5], blocks=(3, 2), slot=1), slots=(init(1),)))
