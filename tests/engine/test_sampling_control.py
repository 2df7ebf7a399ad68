"""Where a text ends, drafts, and what a slot is told when it is bound."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from app.contract.request import FinishReason
from app.contract.step import ScheduledRow, StepPlan
from tests.engine.harness import Harness
from tests.fakes import VOCAB_SIZE, FakeRunner, expected_tokens, fake_request, hash_token

PROMPT = list(range(20))
TEXT = expected_tokens(PROMPT, 40)


def guess(context: Sequence[int]) -> list[int]:
    """Up to three guesses, the first few of them right."""
    draws = zlib.crc32(b"draft%d" % hash_token(context))
    count, right = draws % 4, draws // 4 % 4
    guesses = expected_tokens(context, count)
    return [token if i < right else (token + 1) % 1000 for i, token in enumerate(guesses)]


def test_eos_ends_the_text_and_is_named(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, eos_token_ids=(TEXT[6],))
    engine.add(fake_request("a", PROMPT, 40), fake_request("b", [1], 40))
    engine.run()
    assert engine.tokens["a"] == TEXT[:7]
    assert engine.last["a"].finish_reason is FinishReason.STOP
    assert engine.last["a"].stop_token_id == TEXT[6]
    assert engine.tokens["b"] == expected_tokens([1], 40, stop_token_ids=[TEXT[6]])


def test_ignore_eos_leaves_the_requests_own_stop_tokens(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, eos_token_ids=(TEXT[6],))
    engine.add(fake_request("a", PROMPT, 40, ignore_eos=True, stop_token_ids=(TEXT[9],)))
    engine.run()
    assert engine.tokens["a"] == TEXT[:10]
    assert engine.runner.steps[0].slots[0].stop_token_ids == [TEXT[9]]


def test_eos_tokens_that_the_logits_do_not_have_are_not_masked() -> None:
    engine = Harness(eos_token_ids=(TEXT[6], VOCAB_SIZE, -1))
    engine.add(fake_request("a", PROMPT, 40, min_tokens=3))
    engine.run()
    assert engine.tokens["a"] == TEXT[:7]
    assert engine.runner.steps[0].slots[0].stop_token_ids == [TEXT[6]]


def test_min_tokens_is_left_to_the_slots_mask(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, eos_token_ids=(TEXT[0],))
    engine.add(fake_request("a", PROMPT, 10, min_tokens=3))
    engine.run()
    assert len(engine.tokens["a"]) >= 3
    assert engine.runner.steps[0].slots[0].stop_token_ids == [TEXT[0]]


def test_length_wins_when_the_last_token_is_no_stop_token(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("a", PROMPT, 1))
    engine.run()
    assert engine.tokens["a"] == TEXT[:1]
    assert engine.last["a"].finish_reason is FinishReason.LENGTH
    assert engine.last["a"].stop_token_id is None


def test_drafts_are_verified_and_change_no_text(depth: int) -> None:
    engine = Harness(FakeRunner(draft=guess), pipeline_depth=depth)
    prompts = {str(i): [i] * (3 + i) for i in range(6)}
    engine.add(*(fake_request(key, prompt, 30) for key, prompt in prompts.items()))
    engine.run()
    assert engine.tokens == {key: expected_tokens(prompt, 30) for key, prompt in prompts.items()}
    assert engine.runner.num_accepted_drafts > 0
    assert engine.runner.num_rejected_drafts > 0
    assert len(engine.runner.steps) < 30 * depth, "fewer than a step a token, of a request that is not run ahead"


def test_drafts_keep_within_max_tokens_budget_and_logit_rows(depth: int) -> None:
    runner = FakeRunner(draft=lambda context: expected_tokens(context, 30))
    engine = Harness(runner, pipeline_depth=depth, max_num_batched_tokens=10, max_logit_rows=6, max_num_seqs=3)
    engine.add(*(fake_request(str(i), [i], 20) for i in range(3)))
    engine.run()
    assert engine.tokens == {str(i): expected_tokens([i], 20) for i in range(3)}
    assert max(step.num_logit_rows for step in runner.steps) <= 6
    assert runner.num_accepted_drafts > 0


def test_a_stop_token_among_accepted_drafts_drops_the_rest(depth: int) -> None:
    runner = FakeRunner(draft=lambda context: expected_tokens(context, 6))
    engine = Harness(runner, pipeline_depth=depth, eos_token_ids=(TEXT[9],))
    engine.add(fake_request("a", PROMPT, 40, logprobs=0))
    engine.run()
    assert engine.tokens["a"] == TEXT[:10]
    logprobs = engine.last["a"].logprobs
    assert logprobs is not None
    assert [entry.token_id for entry in logprobs] == engine.last["a"].new_token_ids
    assert runner.num_accepted_drafts > 0


def test_a_guess_is_not_worth_a_preemption(depth: int) -> None:
    runner = FakeRunner(num_blocks=4, draft=lambda context: expected_tokens(context, 20))
    engine = Harness(runner, pipeline_depth=depth)
    engine.add(fake_request("a", [1] * 10, 22), fake_request("b", [2] * 10, 22))
    engine.run()
    assert engine.stats.preemptions_total == 0
    assert engine.tokens["b"] == expected_tokens([2] * 10, 22)


def test_rows_that_sample_nothing_are_tried_again(depth: int) -> None:
    withheld: list[int] = []

    def withhold(step: StepPlan, row: ScheduledRow) -> bool:
        if (step.step * 31 + row.slot) % 3 == 0:
            withheld.append(step.step)
            return True
        return False

    engine = Harness(FakeRunner(withhold=withhold), pipeline_depth=depth)
    engine.add(*(fake_request(str(i), [i] * 14, 25) for i in range(4)))
    engine.run()
    assert withheld
    assert engine.tokens == {str(i): expected_tokens([i] * 14, 25) for i in range(4)}


def test_a_resumed_slot_is_told_what_its_penalties_count(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=6), pipeline_depth=depth)
    engine.add(
        fake_request("a", [1] * 20, 50, repetition_penalty=1.1),
        fake_request("b", [2] * 20, 50, presence_penalty=0.5),
    )
    engine.run()
    assert engine.stats.preemptions_total > 0
    inits = [init for step in engine.runner.steps for init in step.slots]
    assert inits[0].prompt_token_ids == [1] * 20
    assert inits[0].output_token_ids == []
    resumed = inits[-1]
    assert resumed.prompt_token_ids == []
    assert resumed.output_token_ids == expected_tokens([2] * 20, len(resumed.output_token_ids))
    assert resumed.output_token_ids
