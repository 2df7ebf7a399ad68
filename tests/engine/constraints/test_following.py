"""Requests that follow a grammar: what they write, where they end, what they share a step with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from app.contract.request import FinishReason
from tests.engine.constraints.rig import EOS, IM_END, ConstrainedEngine, byte_runner, constrained, next_byte
from tests.fakes import expected_tokens, fake_request

DIGITS = "start: /[0-9]{3,5}/"
SCHEMA = (
    'start: %json {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "legs": {"enum": [0, 2, 4]}},'
    ' "required": ["kind", "legs"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}}'
)


def test_an_answer_matches_its_grammar_and_ends_where_that_does(depth: int) -> None:
    engine = ConstrainedEngine(pipeline_depth=depth)
    engine.add(*(constrained(str(i), DIGITS, prompt=f"prompt {i}") for i in range(6)))
    engine.run()
    for request_id in map(str, range(6)):
        assert re.fullmatch("[0-9]{3,5}", engine.text(request_id))
        last = engine.last[request_id]
        assert last.finish_reason is FinishReason.STOP
        ended = engine.tokens[request_id][-1]
        assert last.stop_token_id == (ended if ended >= 256 else None)


def test_after_the_last_token_that_can_come_no_step_follows() -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", "start: /[ab]/ /[cd]/", min_tokens=20, ignore_eos=True))
    engine.run()
    assert re.fullmatch("[ab][cd]", engine.text("a"))
    assert len(engine.tokens["a"]) == 2
    assert engine.last["a"].finish_reason is FinishReason.STOP
    assert engine.last["a"].stop_token_id is None
    assert len(engine.runner.steps) == 2


@pytest.mark.parametrize("eos", [EOS, IM_END])
def test_every_eos_token_may_come_where_the_grammar_may_end(eos: int) -> None:
    runner = byte_runner(next_token=lambda context: eos if len(context) == 9 else ord("5"))
    engine = ConstrainedEngine(runner)
    engine.add(constrained("a", "start: /[0-9]*/", ignore_eos=True))
    engine.run()
    assert engine.tokens["a"][-1] == engine.last["a"].stop_token_id == eos
    assert len(engine.tokens["a"]) == 4


def test_a_stop_token_may_come_only_where_the_grammar_may_end() -> None:
    runner = byte_runner(next_token=lambda _: ord("7"))
    engine = ConstrainedEngine(runner)
    engine.add(constrained("a", "start: /[0-9]{4,}/", stop_token_ids=(ord("7"),)))
    engine.run()
    assert re.fullmatch("[0-689]{4}7", engine.text("a"))
    assert engine.last["a"].stop_token_id == ord("7")


def test_min_tokens_hold_while_the_grammar_can_go_on() -> None:
    runner = byte_runner(next_token=lambda _: EOS)
    engine = ConstrainedEngine(runner)
    engine.add(constrained("a", "start: /x*/", min_tokens=5), constrained("b", "start: /x{0,3}/", min_tokens=5))
    engine.run()
    assert engine.text("a") == "xxxxx"
    assert engine.text("b") == "xxx"
    assert engine.errors() == {}


def test_max_tokens_cut_an_answer_short() -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", "start: /[0-9]{30}/", 7))
    engine.run()
    assert re.fullmatch("[0-9]{7}", engine.text("a"))
    assert engine.last["a"].finish_reason is FinishReason.LENGTH


def test_tokens_without_a_choice_take_no_steps_of_their_own(depth: int) -> None:
    engine = ConstrainedEngine(pipeline_depth=depth)
    engine.add(constrained("a", 'start: "a long beginning " /[xy]/ " and a middle " /[xy]/ " and an end"', 99))
    engine.run()
    assert re.fullmatch("a long beginning [xy] and a middle [xy] and an end", engine.text("a"))
    assert len(engine.runner.steps) == 2
    assert engine.stats.forced_tokens_total == len(engine.tokens["a"]) - 2
    assert engine.stats.generation_tokens_total == len(engine.tokens["a"])


def test_forced_tokens_keep_within_max_tokens() -> None:
    engine = ConstrainedEngine()
    text = "all of this is given"
    engine.add(constrained("a", f'start: "{text}"', 5), constrained("b", f'start: "{text}"', len(text)))
    engine.run()
    assert engine.text("a") == "all o"
    assert engine.last["a"].finish_reason is FinishReason.LENGTH
    assert engine.text("b") == text
    assert engine.last["b"].finish_reason is FinishReason.STOP
    assert engine.runner.steps == []
    assert engine.last["b"].timings is not None
    assert engine.last["b"].timings.first_token is not None


@pytest.mark.parametrize("params", [{"logprobs": 2}, {"prompt_logprobs": 1}, {"presence_penalty": 0.5}])
def test_nothing_is_forced_where_each_token_is_to_be_sampled(params: dict[str, Any]) -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", 'start: "given"', **params))
    engine.run()
    assert engine.text("a") == "given"
    assert len(engine.runner.steps) == 5
    assert engine.stats.forced_tokens_total == 0


def test_control_tokens_of_a_grammar_are_their_tokens_and_no_text() -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", 'start: "a" <|im_start|> "b"'), constrained("b", 'start: "<|im_start|>"'))
    engine.run()
    assert engine.tokens["a"] == [ord("a"), 258, ord("b")]
    assert engine.tokens["b"] == list(b"<|im_start|>")


def test_a_schema_gives_json(depth: int) -> None:
    engine = ConstrainedEngine(pipeline_depth=depth)
    engine.add(*(constrained(str(i), SCHEMA, 200, prompt=f"p{i}") for i in range(8)))
    engine.run()
    for request_id in map(str, range(8)):
        value = json.loads(engine.text(request_id))
        assert value["kind"] in ("cat", "dog")
        assert value["legs"] in (0, 2, 4)
        assert set(value) == {"kind", "legs"}


def test_neighbours_are_not_touched(depth: int) -> None:
    """The same tokens as alone, with a constrained request in each of their steps."""
    engine = ConstrainedEngine(pipeline_depth=depth)
    engine.add(constrained("a", "start: /[0-9]{40}/"), fake_request("b", b"free", 40))
    engine.compile()
    engine.run()
    free = expected_tokens(b"free", 40, next_token=next_byte)
    assert engine.tokens["b"][: len(free)] == free[: len(engine.tokens["b"])]
    assert re.fullmatch("[0-9]{40}", engine.text("a"))


def test_a_preempted_request_goes_on_in_its_grammar(depth: int) -> None:
    """Two requests that do not both fit: one of them computes again what it had."""
    small = byte_runner(num_blocks=8, block_size=4)
    engine = ConstrainedEngine(small, pipeline_depth=depth)
    grammar = "start: /[0-9]{20}/"
    engine.add(constrained("a", grammar, 20), constrained("b", grammar, 20, prompt="other"))
    engine.run()
    assert engine.stats.preemptions_total > 0
    alone = ConstrainedEngine(pipeline_depth=depth)
    alone.add(constrained("a", grammar, 20), constrained("b", grammar, 20, prompt="other"))
    alone.run()
    assert engine.tokens == alone.tokens


def test_a_cached_prefix_serves_constrained_requests() -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", DIGITS, prompt="a prompt of several blocks, so long is it"))
    engine.run()
    engine.add(constrained("b", DIGITS, prompt="a prompt of several blocks, so long is it"))
    engine.run()
    assert engine.first["b"].num_cached_tokens > 0
    assert engine.tokens["a"] == engine.tokens["b"]


def test_prompts_in_chunks_are_masked_only_where_they_end() -> None:
    engine = ConstrainedEngine(max_num_batched_tokens=8)
    engine.add(constrained("a", DIGITS, prompt="more than one step reads"))
    engine.run()
    assert re.fullmatch("[0-9]{3,5}", engine.text("a"))


GUESSED = {
    "digits": "start: /[0-9]{20}/",
    "forced between": 'start: (/[0-9]/ "then" /[0-9]/ | /[0-9]/ "and" /[0-9][0-9]/) /[0-9]{6}/ "." /[ab]{4}/',
    "free": "start: /(.|\\n){30}/",
    "may end": "start: /[0-4]{2,30}/",
    "a schema": SCHEMA,
}


@pytest.mark.parametrize("name", list(GUESSED))
@pytest.mark.parametrize("stop", [(), (ord("7"),)], ids=["", "stop"])
def test_guesses_change_no_answer(depth: int, name: str, stop: tuple[int, ...]) -> None:
    """Guesses that are mostly right, some that the grammar does not let come, some of what it forces."""
    request = constrained("a", GUESSED[name], 30, stop_token_ids=stop, min_tokens=5)
    plain = ConstrainedEngine(pipeline_depth=depth)
    plain.add(request)
    plain.run()
    answer = plain.tokens["a"]

    def guess(context: Sequence[int]) -> list[int]:
        told = answer[len(context) - len("prompt") :][:4]
        return [*told[:2], ord("7"), *told[3:]] if len(context) % 3 else told

    runner = byte_runner(draft=guess)
    engine = ConstrainedEngine(runner, pipeline_depth=depth)
    engine.add(request)
    engine.run()
    assert engine.tokens == plain.tokens
    assert engine.last["a"].finish_reason is plain.last["a"].finish_reason
    if name in ("digits", "free"):
        assert runner.num_accepted_drafts > 4


def test_an_answer_that_repeats_itself_is_guessed_within_its_grammar() -> None:
    runner = byte_runner(next_token=lambda context: b"words and ."[len(context) % 11])
    engine = ConstrainedEngine(runner, draft="lookup")
    engine.add(constrained("a", "start: /[a-z ]{60}/", 60))
    engine.run()
    assert re.fullmatch("[a-z ]{60}", engine.text("a"))
    assert engine.last["a"].num_right_drafts > 20


def test_nothing_is_guessed_where_a_grammar_meets_a_bias() -> None:
    runner = byte_runner(next_token=lambda context: b"words and ."[len(context) % 11], draft=lambda _: [ord("w")])
    engine = ConstrainedEngine(runner, draft="lookup")
    engine.add(constrained("a", "start: /[a-z ]{60}/", 60, logit_bias={ord("x"): -1.0}))
    engine.run()
    assert engine.last["a"].num_drafts == 0


def test_a_grammars_first_tokens_are_none_of_the_prompts_cached_ones() -> None:
    engine = ConstrainedEngine(block_size=4, runner=byte_runner(block_size=4))
    for request_id in "ab":
        engine.add(constrained(request_id, 'start: "a long beginning " /[xy]/'))
        engine.run()
    assert 0 < engine.first["b"].num_cached_tokens <= len("prompt")
    assert engine.tokens["a"] == engine.tokens["b"]


def test_only_allowed_tokens_that_the_grammar_has_too() -> None:
    """Nothing is forced there: it might not be allowed."""
    engine = ConstrainedEngine()
    engine.add(constrained("a", 'start: "ab"', allowed_token_ids=(ord("a"), ord("b"))))
    engine.run()
    assert engine.stats.forced_tokens_total == 0
    assert engine.text("a") == "ab"
