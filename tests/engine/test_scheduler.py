"""Batching, chunking, priorities, preemption: each mechanism fires, and the text is the same as without it."""

from __future__ import annotations

import pytest

from app.contract.request import FinishReason
from tests.engine.harness import Harness
from tests.fakes import FakeRunner, expected_tokens, fake_request


def prompt_of(length: int, first: int = 0) -> list[int]:
    return [(first + i) % 1000 for i in range(length)]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 100])
def test_one_request_gives_the_reference_text(depth: int, length: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("a", prompt_of(length), 20))
    engine.run()
    assert engine.tokens["a"] == expected_tokens(prompt_of(length), 20)
    assert engine.last["a"].finish_reason is FinishReason.LENGTH
    assert engine.stats.prompt_tokens_total == length
    assert engine.stats.generation_tokens_total == 20


def test_a_second_step_is_under_way_before_the_first_is_read(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("a", [1, 2, 3], 10))
    engine.run()
    assert engine.runner.max_in_flight == depth
    assert engine.runner.num_device_rows == (9 if depth == 2 else 0)


def test_nothing_is_computed_past_max_tokens(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("a", prompt_of(5), 10))
    engine.run()
    assert engine.runner.num_computed_tokens == 5 + 9


def test_batched_requests_are_independent(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=128), pipeline_depth=depth, max_num_seqs=16)
    prompts = {str(i): prompt_of(3 + 7 * i, i) for i in range(16)}
    engine.add(*(fake_request(key, prompt, 5 + i) for i, (key, prompt) in enumerate(prompts.items())))
    engine.run()
    assert engine.tokens == {key: expected_tokens(prompt, 5 + int(key)) for key, prompt in prompts.items()}
    assert max(len(step.rows) for step in engine.runner.steps) == 16


def test_a_long_prompt_is_computed_in_chunks_within_the_budget(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, max_num_batched_tokens=24)
    engine.add(fake_request("a", prompt_of(100), 4))
    engine.run()
    assert engine.tokens["a"] == expected_tokens(prompt_of(100), 4)
    assert [step.num_tokens for step in engine.runner.steps[:5]] == [24, 24, 24, 24, 4]


def test_decodes_go_on_while_a_prompt_is_computed_and_the_prompt_too(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, max_num_batched_tokens=8)
    engine.add(*(fake_request(f"d{i}", [i], 40, priority=1) for i in range(4)))
    for _ in range(3):
        engine.step()
    engine.add(fake_request("long", prompt_of(60), 2, priority=0))
    engine.run()
    widths = [len(step.rows) for step in engine.runner.steps if any(row.num_samples == 0 for row in step.rows)]
    assert widths.count(5) >= 5, "the four decodes share steps with chunks of the prompt ahead of them"
    assert engine.order[0] == "long"


def test_prompts_make_progress_when_decodes_could_fill_every_step(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, max_num_batched_tokens=4, max_num_seqs=8)
    engine.add(*(fake_request(f"d{i}", [i], 60, priority=0) for i in range(3)))
    for _ in range(4):
        engine.step()
    engine.add(fake_request("prompt", prompt_of(20), 1, priority=1))
    engine.run()
    assert engine.order[0] == "prompt"


def test_a_short_request_that_joins_later_ends_before_the_long_one(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("long", [1], 100))
    for _ in range(5):
        engine.step()
    engine.add(fake_request("short", [2], 3))
    engine.run()
    assert engine.order == ["short", "long"]


def test_better_priority_goes_first_and_equals_in_order_of_arrival(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, max_num_seqs=1)
    engine.add(
        fake_request("late", [1], 2, priority=1, arrival_time=2.0),
        fake_request("early", [2], 2, priority=1, arrival_time=1.0),
        fake_request("low", [3], 2, priority=2, arrival_time=0.0),
        fake_request("high", [4], 2, priority=-1, arrival_time=3.0),
    )
    engine.run()
    assert engine.order == ["high", "early", "late", "low"]


def test_running_out_of_blocks_preempts_the_newest_and_changes_no_text(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=10), pipeline_depth=depth)
    prompts = {str(i): prompt_of(20, 10 * i) for i in range(4)}
    engine.add(*(fake_request(key, prompt, 60) for key, prompt in prompts.items()))
    engine.run()
    assert engine.stats.preemptions_total > 0
    assert engine.tokens == {key: expected_tokens(prompt, 60) for key, prompt in prompts.items()}
    assert engine.order[0] == "0"


def test_one_missing_block_costs_one_preemption(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=12), pipeline_depth=depth)
    engine.add(*(fake_request(str(i), prompt_of(46, 50 * i), 40) for i in range(3)))
    while engine.stats.preemptions_total == 0:
        engine.step()
    assert engine.stats.preemptions_total == 1
    assert engine.stats.num_running == 2
    engine.run()


def test_a_request_that_fills_the_cache_alone_finishes_beside_others(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=4), pipeline_depth=depth)
    engine.add(
        fake_request("a", prompt_of(3), 61), fake_request("b", prompt_of(3, 9), 61), fake_request("c", [1] * 63, 1)
    )
    engine.run()
    assert engine.order == ["a", "b", "c"]
    assert engine.tokens["b"] == expected_tokens(prompt_of(3, 9), 61)


def test_a_preempted_request_resumes_from_its_cached_blocks(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=9), pipeline_depth=depth)
    engine.add(fake_request("a", prompt_of(40), 60), fake_request("b", prompt_of(40, 500), 60))
    engine.run()
    assert engine.stats.preemptions_total > 0
    assert engine.tokens["b"] == expected_tokens(prompt_of(40, 500), 60)
    needed = 2 * (40 + 59)
    assert needed < engine.runner.num_computed_tokens < needed + 40, "something was computed again, but not all of it"


def test_waiting_of_better_priority_preempts_running_when_slots_are_short(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, max_num_seqs=2)
    engine.add(*(fake_request(f"low{i}", [i, 1], 30, priority=1) for i in range(2)))
    for _ in range(6):
        engine.step()
    engine.add(fake_request("high", [7], 3, priority=0), fake_request("same", [8], 3, priority=1, arrival_time=1.0))
    engine.run()
    assert engine.order[0] == "high"
    assert engine.stats.preemptions_total == 1
    assert engine.tokens["low1"] == expected_tokens([1, 1], 30)


def test_waiting_of_better_priority_preempts_running_when_blocks_are_short(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=8), pipeline_depth=depth)
    engine.add(*(fake_request(f"low{i}", prompt_of(33, 100 * i), 30, priority=1) for i in range(2)))
    for _ in range(4):
        engine.step()
    engine.add(fake_request("high", prompt_of(60, 300), 3, priority=0))
    engine.run()
    assert engine.order[0] == "high"
    assert engine.tokens["low1"] == expected_tokens(prompt_of(33, 100), 30)


def test_an_impossible_request_is_refused_and_others_go_on(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=4, max_model_len=512), pipeline_depth=depth)
    engine.add(fake_request("ok", [1, 2], 10), fake_request("huge", prompt_of(60), 5))
    assert [output.request_id for output in engine.step() if output.error] == ["huge"]
    engine.run()
    assert engine.errors() == {"huge": "context_length_exceeded"}
    assert engine.tokens["ok"] == expected_tokens([1, 2], 10)


@pytest.mark.parametrize("where", ["waiting", "prefill", "decode"])
def test_abort_frees_everything_within_one_step(depth: int, where: str) -> None:
    engine = Harness(pipeline_depth=depth, max_num_seqs=1 if where == "waiting" else 4, max_num_batched_tokens=16)
    engine.add(fake_request("other", [5], 60))
    engine.step()
    engine.add(fake_request("gone", prompt_of(100), 50))
    for _ in range({"waiting": 3, "prefill": 3, "decode": 20}[where]):
        engine.step()
    assert ("gone" in engine.tokens) == (where == "decode")
    assert engine.stats.blocks_used > 3 or where == "waiting"
    engine.core.abort(["gone", "unknown"])
    engine.step()
    assert engine.last["gone"].finish_reason is FinishReason.ABORT
    assert engine.stats.blocks_used <= 2
    assert engine.stats.num_waiting == 0
    computed = {row.slot for row in engine.runner.steps[-1].rows}
    assert len(computed) == 1
    engine.run()
    assert engine.tokens["other"] == expected_tokens([5], 60)


def test_a_deadline_that_passes_in_the_queue_costs_no_token(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, max_num_seqs=1)
    engine.add(fake_request("running", [1], 20), fake_request("late", prompt_of(50), 5, deadline=3.0))
    while engine.core.has_work:
        engine.now += 1.0
        engine.step()
    assert engine.errors() == {"late": "deadline_exceeded"}
    assert engine.stats.prompt_tokens_total == 1
    timings = engine.last["late"].timings
    assert timings is not None
    assert timings.first_scheduled is None


def test_a_deadline_also_ends_a_running_request(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("a", [1], 100, deadline=5.0), fake_request("b", [2], 20))
    while engine.core.has_work:
        engine.now += 1.0
        engine.step()
    assert engine.errors() == {"a": "deadline_exceeded"}
    assert engine.tokens["a"] == expected_tokens([1], 100)[: len(engine.tokens["a"])]
    assert engine.tokens["b"] == expected_tokens([2], 20)
    engine.check_baseline()


def test_timings_and_counts_come_with_first_and_last_output(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("a", [1], 3, arrival_time=-2.0))
    while engine.core.has_work:
        engine.now += 1.0
        engine.step()
    first, last = engine.first["a"].timings, engine.last["a"].timings
    assert first is not None
    assert last is not None
    assert (first.arrival, first.first_scheduled, first.first_token) == (-2.0, 1.0, float(depth))
    assert first.finished is None
    assert last.finished == depth + 2.0


def test_a_waiting_request_never_overtakes_one_that_lacks_blocks(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=6), pipeline_depth=depth)
    engine.add(fake_request("a", prompt_of(40), 8), fake_request("b", prompt_of(60, 200), 8), fake_request("c", [3], 8))
    engine.run()
    assert engine.order[0] == "a"
    assert engine.first["b"].timings is not None
    assert engine.first["c"].timings is not None
    first_rows = [init.prompt_len for step in engine.runner.steps for init in step.slots]
    assert first_rows == [40, 60, 1]
    assert engine.stats.preemptions_total == 0, "prompts are admitted only with room for all of them"
