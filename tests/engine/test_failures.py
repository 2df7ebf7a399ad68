"""Steps and rows that fail: who pays, who does not, and that nothing unwritten is ever shared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from app.contract.info import KVCacheSpec
from app.contract.request import FinishReason, RequestStatus
from app.contract.step import RowOutput, StepPlan, StepResult
from app.engine.core import EngineFailedError
from app.engine.drafts.desk import DraftDesk
from app.engine.kv.manager import KVManager
from app.engine.request import Request
from app.engine.scheduler import Scheduler
from tests.engine.harness import Harness
from tests.fakes import FakeRunner, expected_tokens, fake_config, fake_request, kv_group

PREFIX = [(3 * i) % 1000 for i in range(64)]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def fails_at(*steps: int) -> Callable[[StepPlan], bool]:
    return lambda step: step.step in steps


def failing(where: str, step: int) -> FakeRunner:
    runner = FakeRunner()
    setattr(runner, where, fails_at(step))
    return runner


@pytest.mark.parametrize("where", ["fail_submit", "fail_collect"])
def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(depth: int, where: str) -> None:
    engine = Harness(failing(where, 5), pipeline_depth=depth)
    engine.add(fake_request("a", [1, 2], 20), fake_request("b", [3], 20))
    for _ in range(8):
        engine.step()
    engine.add(fake_request("c", [4], 20))
    engine.run()
    assert engine.errors() == {"a": "engine_error", "b": "engine_error"}
    assert engine.tokens["a"] == expected_tokens([1, 2], 20)[: len(engine.tokens["a"])]
    assert engine.tokens["c"] == expected_tokens([4], 20)


@pytest.mark.parametrize("where", ["fail_submit", "fail_collect"])
def test_blocks_of_a_failed_step_are_not_found_by_later_requests(depth: int, where: str) -> None:
    engine = Harness(failing(where, 0), pipeline_depth=depth)
    engine.add(fake_request("a", PREFIX, 4))
    engine.run()
    engine.add(fake_request("b", PREFIX, 4))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}
    assert engine.last["b"].num_cached_tokens == 0
    assert engine.tokens["b"] == expected_tokens(PREFIX, 4)


def test_whoever_shares_a_block_that_was_never_written_computes_it_again() -> None:
    engine = Harness(FakeRunner(fail_collect=fails_at(0)), pipeline_depth=2)
    longer = [*PREFIX, *range(40)]
    engine.add(fake_request("writer", PREFIX, 4))
    engine.step()
    engine.add(fake_request("sharer", longer, 4))
    engine.step()  # submits step 1, on blocks of step 0, before step 0 is found to have failed
    assert engine.stats.prefix_hit_tokens_total == 64
    engine.run()
    assert engine.errors() == {"writer": "engine_error"}
    assert engine.stats.preemptions_total == 1
    assert engine.tokens["sharer"] == expected_tokens(longer, 4)
    engine.add(fake_request("later", longer, 4))
    engine.run()
    assert engine.tokens["later"] == engine.tokens["sharer"], "nor is what step 1 derived from them on offer"
    assert engine.last["later"].num_cached_tokens == 96


def test_a_bystander_of_a_failed_step_is_not_disturbed() -> None:
    engine = Harness(FakeRunner(fail_collect=fails_at(0)), pipeline_depth=2)
    engine.add(fake_request("a", PREFIX, 4))
    engine.step()
    engine.add(fake_request("b", [9] * 40, 4))
    engine.run()
    engine.add(fake_request("c", [9] * 40, 4))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}
    assert engine.stats.preemptions_total == 0
    assert engine.tokens["b"] == expected_tokens([9] * 40, 4)
    assert engine.last["c"].num_cached_tokens == 32, "its blocks are on offer again once its own step has succeeded"


def test_a_request_may_have_resumed_on_blocks_that_it_published_in_the_failed_step() -> None:
    config = fake_config(pipeline_depth=3)
    kv = KVManager(KVCacheSpec(block_size=16, groups=[kv_group("full", 8)]), config, max_model_len=128)
    scheduler = Scheduler(config, kv, DraftDesk(config, enabled=False))
    request = Request(fake_request("a", PREFIX, 4), 0, ())
    scheduler.add(request)
    failing = scheduler.schedule(0.0)
    scheduler.preempt(request)
    resumed = scheduler.schedule(0.0)
    assert failing is not None
    assert resumed is not None
    assert resumed.rows[0].row.start == 48, "on its own blocks"
    assert scheduler.fail(failing) == []
    assert request.status is RequestStatus.PREEMPTED
    assert request.num_computed_tokens == 0


def test_three_failed_steps_in_a_row_end_the_engine_but_all_are_answered(depth: int) -> None:
    engine = Harness(FakeRunner(fail_collect=lambda _: True), pipeline_depth=depth, max_num_seqs=1)
    engine.add(*(fake_request(str(i), [i], 5) for i in range(4)))
    with pytest.raises(EngineFailedError, match=r"3 steps failed.*RuntimeError: fake: collect failed"):
        engine.run()
    rest = [output.request_id for outputs in engine.core.take_outputs().values() for output in outputs]
    # At depth 2 the second of the three steps ran ahead of the first, with the same request.
    assert engine.order + rest == ["0", "1", "2"][: 4 - depth]


def test_failures_with_successes_between_do_not_add_up(depth: int) -> None:
    engine = Harness(FakeRunner(fail_collect=lambda step: step.step % 3 == 0), pipeline_depth=depth)
    for i in range(12):
        engine.add(fake_request(str(i), [i], 1))
        engine.run()
    assert list(engine.errors().values()).count("engine_error") >= 4
    assert engine.reasons(["1", "2"]) == [FinishReason.LENGTH] * 2


def test_memory_errors_are_failures_of_the_step(depth: int) -> None:
    def out_of_memory(step: StepPlan) -> bool:
        if step.step == 0:
            raise MemoryError
        return False

    engine = Harness(FakeRunner(fail_submit=out_of_memory), pipeline_depth=depth)
    engine.add(fake_request("a", [1], 3))
    engine.run()
    engine.add(fake_request("b", [1], 3))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}


@pytest.mark.parametrize(
    "result", [StepResult(rows=[]), StepResult(rows=[RowOutput(token_ids=[1, 2, 3])])], ids=["rows", "samples"]
)
def test_a_result_that_does_not_match_the_step_is_a_failure(result: StepResult) -> None:
    class Confused(FakeRunner):
        def collect(self, handle: Any) -> StepResult:
            super().collect(handle)
            return result

    engine = Harness(Confused())
    engine.add(fake_request("a", [1], 3))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}


def test_a_row_that_fails_alone_leaves_its_neighbours_and_the_cache_clean(depth: int) -> None:
    runner = FakeRunner(row_error=lambda step, row: "non-finite logits" if row.slot == 1 and step.step == 4 else None)
    engine = Harness(runner, pipeline_depth=depth)
    engine.add(fake_request("a", [1] * 40, 12), fake_request("nan", [2] * 40, 12), fake_request("c", [3] * 40, 12))
    engine.run()
    assert engine.errors() == {"nan": "engine_error"}
    assert engine.last["nan"].error is not None
    assert engine.last["nan"].error.message == "non-finite logits"
    assert engine.tokens["a"] == expected_tokens([1] * 40, 12)
    runner.row_error = None
    engine.add(fake_request("again", [2] * 40, 12))
    engine.run()
    assert engine.last["again"].num_cached_tokens == 0
    assert engine.tokens["again"] == expected_tokens([2] * 40, 12)
