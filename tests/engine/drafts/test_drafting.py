"""Guesses of the engine's own: they change no text, save steps where text repeats, and go where they are of use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from app.contract.info import KVCacheGroup
from app.contract.step import StepPlan, TokenMasks
from tests.engine.harness import Harness
from tests.fakes import FakeRunner, expected_tokens, fake_request, hash_token, kv_group

LONG = 120


def chorus(context: Sequence[int]) -> int:
    """A text that mostly says what stood nine tokens before."""
    return hash_token(context) % 50 if len(context) < 9 or hash_token(context) % 12 == 0 else context[-9]


def engine_of(
    next_token: Callable[[Sequence[int]], int] = chorus, *, groups: list[KVCacheGroup] | None = None, **config: Any
) -> Harness:
    runner = FakeRunner(next_token=next_token, groups=groups or [kv_group("full", 200)])
    return Harness(runner, **{"draft": "lookup", **config})


def verse(number: int) -> list[int]:
    return [(number * 31 + n * n) % 50 for n in range(20)]


def drafts_of(step: StepPlan) -> list[int]:
    return [max(0, row.num_samples - 1) for row in step.rows]


def test_a_text_that_repeats_takes_fewer_steps(depth: int) -> None:
    engine = engine_of(pipeline_depth=depth)
    engine.add(fake_request("a", verse(0), LONG), fake_request("b", verse(1), LONG))
    engine.run()
    for name, number in (("a", 0), ("b", 1)):
        assert engine.tokens[name] == expected_tokens(verse(number), LONG, next_token=chorus)
        assert engine.last[name].num_right_drafts > LONG // 3
        assert engine.last[name].num_drafts >= engine.last[name].num_right_drafts
    assert len(engine.runner.steps) < 0.8 * LONG
    stats = engine.stats
    assert stats.draft_tokens_total == sum(output.num_drafts for output in engine.last.values())
    assert stats.accepted_draft_tokens_total == sum(output.num_right_drafts for output in engine.last.values())
    assert stats.accepted_draft_tokens_total == engine.runner.num_accepted_drafts


def test_without_a_drafter_nothing_is_guessed(depth: int) -> None:
    engine = engine_of(pipeline_depth=depth, draft="none")
    engine.add(fake_request("a", verse(0), LONG))
    engine.run()
    assert all(not any(drafts_of(step)) for step in engine.runner.steps)
    assert engine.tokens["a"] == expected_tokens(verse(0), LONG, next_token=chorus)


def test_a_text_that_does_not_repeat_is_soon_left_alone(depth: int) -> None:
    def wanders(context: Sequence[int]) -> int:
        """Pairs of tokens come again, what follows them does not."""
        return len(context) % 2 if len(context) % 3 else hash_token(context)

    engine = engine_of(wanders, pipeline_depth=depth, draft_ngram=2)
    engine.add(fake_request("a", verse(0), 250))
    engine.run()
    assert engine.tokens["a"] == expected_tokens(verse(0), 250, next_token=wanders)
    guessed = [any(drafts_of(step)) for step in engine.runner.steps]
    assert 0 < sum(guessed) < 0.5 * len(guessed)


def test_no_more_is_guessed_than_allowed() -> None:
    engine = engine_of(max_draft_tokens=2)
    engine.add(fake_request("a", verse(0), LONG))
    engine.run()
    assert max(max(drafts_of(step)) for step in engine.runner.steps) == 2


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_nothing_is_guessed_where_penalties_count_what_was_sampled(penalty: str) -> None:
    engine = engine_of()
    penalties: dict[str, Any] = {penalty: 1.5}
    engine.add(fake_request("a", verse(0), LONG, **penalties), fake_request("b", verse(1), LONG))
    engine.run()
    assert engine.last["a"].num_drafts == 0 < engine.last["b"].num_drafts


def test_nothing_is_guessed_where_a_state_cannot_go_back(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(groups=[kv_group("full", 64), kv_group("state", 64)])
    assert "no drafts (lookup): the model's recurrent state cannot go back" in caplog.text
    engine.add(fake_request("a", verse(0), 40))
    engine.run()
    assert engine.last["a"].num_drafts == 0


def test_nothing_is_guessed_where_the_runner_does_not_verify(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(next_token=chorus)
    runner.info = replace(runner.info, verifies_drafts=False, device="cuda:0")
    engine = Harness(runner, draft="lookup")
    assert "no drafts (lookup): rows of several samples are not computed bit for bit on cuda:0" in caplog.text
    engine.add(fake_request("a", verse(0), 40))
    engine.run()
    assert engine.last["a"].num_drafts == 0


def test_nothing_is_guessed_where_steps_have_many_rows() -> None:
    engine = engine_of(max_num_seqs=40, groups=[kv_group("full", 1000)])
    engine.add(*(fake_request(str(n), verse(n), 40) for n in range(40)))
    engine.run()
    assert all(not any(drafts_of(step)) for step in engine.runner.steps if len(step.rows) > 32)
    assert engine.tokens == {str(n): expected_tokens(verse(n), 40, next_token=chorus) for n in range(40)}


def test_guesses_that_cost_as_much_as_steps_are_given_up() -> None:
    engine = engine_of()
    submit = engine.runner.submit

    def submit_for_a_while(step: StepPlan, masks: TokenMasks | None = None) -> Any:
        engine.now += 0.01 * step.num_tokens
        return submit(step, masks)

    engine.runner.submit = submit_for_a_while  # type: ignore[method-assign, assignment]
    engine.add(fake_request("a", verse(0), 300))
    engine.run()
    late = engine.runner.steps[len(engine.runner.steps) // 2 :]
    assert sum(any(drafts_of(step)) for step in late) < 0.2 * len(late)
    assert engine.tokens["a"] == expected_tokens(verse(0), 300, next_token=chorus)


def test_an_answer_is_guessed_from_its_prediction(depth: int) -> None:
    answer = expected_tokens([1, 2, 3], 64)  # of hashes: nothing in it comes twice
    engine = engine_of(hash_token, pipeline_depth=depth)
    plain = fake_request("plain", [1, 2, 3], 64)
    engine.add(plain)
    engine.run()
    steps = len(engine.runner.steps)
    changed = [*answer[:20], 7, 7, 7, *answer[24:]]
    engine.add(fake_request("told", [1, 2, 3], 64, prediction_token_ids=changed))
    engine.run()
    assert engine.tokens == {"plain": answer, "told": answer}
    assert engine.last["plain"].num_right_drafts == 0
    assert engine.last["told"].num_right_drafts > 40
    assert len(engine.runner.steps) - steps < steps / 2


def test_answers_of_one_tenant_are_guessed_again_and_those_of_another_are_not() -> None:
    engine = engine_of(lambda context: hash_token(context[-60:]), draft="history")
    for name, tenant, start in (("a", "x", 1), ("b", "x", 2), ("c", "y", 3)):
        prompt = [start, *([9] * 60)]  # all that the model looks at is the same
        engine.add(fake_request(name, prompt, 60, cache_salt=tenant))
        engine.run()
    first, again, stranger = (engine.last[name].num_right_drafts for name in "abc")
    assert engine.tokens["a"] == engine.tokens["b"] == engine.tokens["c"]
    assert first == stranger == 0
    assert again > 30


def test_a_block_that_holds_guesses_is_not_found_by_others(depth: int) -> None:
    """Wrong guesses write into blocks whose beginnings are right: only what came true is published."""
    engine = engine_of(pipeline_depth=depth, max_draft_tokens=20)
    for name, length in itertools.product("ab", (33, 47, 60)):
        engine.add(fake_request(f"{name}{length}", verse(0), length))
        engine.run()
        assert engine.tokens[f"{name}{length}"] == expected_tokens(verse(0), length, next_token=chorus)
    assert engine.stats.prefix_hit_tokens_total > 0
    assert engine.runner.num_rejected_drafts > 0
