"""Engines whose layers keep different things: windows that are given back, states at boundaries, prefixes of both."""

from __future__ import annotations

import logging

import pytest

from app.contract.info import KVCacheGroup, KVCacheSpec
from app.engine.core import EngineCore
from app.engine.kv.manager import KVManager
from app.engine.request import Request
from tests.engine.harness import Harness
from tests.fakes import FakeRunner, expected_tokens, fake_config, fake_request, kv_group

BLOCK = 16
PREFIX = [(7 * i) % 1000 for i in range(2000)]
WINDOW = 40
SPECS: dict[str, list[KVCacheGroup]] = {
    "full": [kv_group("full", 160)],
    "full+sliding": [kv_group("full", 160), kv_group("sliding", 40, window=WINDOW)],
    "full+state": [kv_group("full", 160), kv_group("state", 30)],
    "sliding": [kv_group("sliding", 40, window=WINDOW)],
    "state+sliding": [kv_group("state", 30), kv_group("sliding", 40, window=WINDOW)],
}


@pytest.fixture(params=sorted(SPECS))
def groups(request: pytest.FixtureRequest) -> list[KVCacheGroup]:
    return SPECS[request.param]


def runner_of(groups: list[KVCacheGroup], **kwargs: object) -> FakeRunner:
    return FakeRunner(groups=groups, max_model_len=2048, **kwargs)  # type: ignore[arg-type]


def manager(*groups: KVCacheGroup, max_model_len: int = 1 << 16, **config: object) -> KVManager:
    return KVManager(
        KVCacheSpec(block_size=BLOCK, groups=list(groups)), fake_config(**config), max_model_len=max_model_len
    )


def grown(kv: KVManager, tokens: list[int], *, chunk: int) -> Request:
    """A request that has been computed, as far as its tokens go, by rows of one chunk after another."""
    request = Request(fake_request("r", tokens, 100), 0, ())
    kv.share(request, kv.match(request))
    for start in range(0, len(tokens), chunk):
        end = min(start + chunk, len(tokens))
        request.num_computed_tokens = start
        kv.begin_step()
        kv.allocate(request, end)
        kv.publish(request, end)
        kv.give_back(request, end)
    return request


def held(request: Request) -> list[int]:
    return [table.num_held for table in request.tables]


def hit(kv: KVManager, tokens: list[int]) -> int:
    kv.begin_step()
    return kv.match(Request(fake_request("r", tokens, 100), 0, ())).num_blocks


def test_ten_turns_of_three_conversations_find_what_the_turns_before_left(
    groups: list[KVCacheGroup], depth: int
) -> None:
    engine = Harness(runner_of(groups), pipeline_depth=depth, max_num_batched_tokens=96)
    texts = {name: [number] * 30 for number, name in enumerate("abc")}
    could_hit = 0
    for turn in range(10):
        for name, text in texts.items():
            text += PREFIX[turn * 13 : turn * 13 + 13]
            if turn:
                could_hit += (len(text) - 14) // BLOCK * BLOCK  # the last token that was sampled has no KV
            engine.add(fake_request(f"{name}{turn}", text, 25))
        engine.run()
        for name, text in texts.items():
            answer = engine.tokens[f"{name}{turn}"]
            assert answer == expected_tokens(text, 25)
            text += answer
    assert engine.stats.prefix_hit_tokens_total > 0.9 * could_hit > 0


def test_preempted_and_resumed_with_the_same_text(groups: list[KVCacheGroup], depth: int) -> None:
    smallest = {"full": 14, "sliding": 10, "state": 8}
    small = [kv_group(group.kind, smallest[group.kind], window=group.window) for group in groups]
    engine = Harness(runner_of(small), pipeline_depth=depth, max_num_batched_tokens=64, max_num_seqs=4)
    low = [fake_request(f"low{i}", [i] * 50, 60, priority=1) for i in range(4)]
    engine.add(*low)
    for _ in range(8):
        engine.step()
    high = [fake_request(f"high{i}", [10 + i] * 60, 30, priority=0) for i in range(3)]
    engine.add(*high)
    engine.run()
    assert engine.stats.preemptions_total > 0
    for request in low + high:
        expected = expected_tokens(request.prompt_token_ids, request.sampling.max_tokens)
        assert engine.tokens[request.request_id] == expected


@pytest.mark.parametrize("where", ["fail_submit", "fail_collect"])
def test_a_failed_step_leaves_nothing_behind(
    groups: list[KVCacheGroup], depth: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    runner = runner_of(groups)
    setattr(runner, where, lambda step: step.step == 2)
    engine = Harness(runner, pipeline_depth=depth, max_num_batched_tokens=64)
    engine.add(fake_request("a", PREFIX[:180], 4))
    for _ in range(3):
        engine.step()
    engine.add(fake_request("b", PREFIX[:200], 4))
    engine.run()
    engine.add(fake_request("c", PREFIX[:220], 4))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}
    assert engine.tokens["b"] == expected_tokens(PREFIX[:200], 4)
    assert engine.tokens["c"] == expected_tokens(PREFIX[:220], 4)
    assert engine.last["c"].num_cached_tokens == 192


def test_an_aborted_request_gives_all_back_when_its_last_step_is_over(groups: list[KVCacheGroup], depth: int) -> None:
    engine = Harness(runner_of(groups), pipeline_depth=depth, max_num_batched_tokens=64)
    engine.add(fake_request("a", PREFIX[:300], 50), fake_request("b", [1], 50))
    for _ in range(4):
        engine.step()
    engine.core.abort(["a"])
    engine.run()
    assert engine.tokens["b"] == expected_tokens([1], 50)


# -- sliding ----------------------------------------------------------------------------------------------------


def test_what_has_left_the_window_is_given_back() -> None:
    """A shape like Gemma 3's: one layer of full attention to five of a window."""
    full, sliding = kv_group("full", 2112), kv_group("sliding", 256, window=1024)
    kv = manager(full, sliding, max_num_batched_tokens=1024)
    request = grown(kv, [1] * 32768, chunk=1024)
    assert held(request) == [2048, 64]
    kv.allocate(request, 32768 + 1024)
    used = [num_blocks * num_layers for num_blocks, num_layers in zip(held(request), (1, 5), strict=True)]
    assert sum(used) <= 0.25 * 6 * 2048
    kv.check_integrity([request.tables])


def test_a_sliding_model_answers_far_beyond_its_pool(depth: int) -> None:
    engine = Harness(
        runner_of([kv_group("sliding", 8, window=WINDOW)]), pipeline_depth=depth, max_num_batched_tokens=64
    )
    engine.add(fake_request("a", PREFIX[:600], 300))
    engine.run()
    assert engine.tokens["a"] == expected_tokens(PREFIX[:600], 300)


@pytest.mark.parametrize(("num_blocks", "longest_row"), [(4, 10), (5, 26), (8, 64)])
def test_rows_are_no_longer_than_a_small_pool_takes(num_blocks: int, longest_row: int, depth: int) -> None:
    engine = Harness(
        runner_of([kv_group("sliding", num_blocks, window=WINDOW)]), pipeline_depth=depth, max_num_batched_tokens=64
    )
    engine.add(fake_request("a", PREFIX[:400], 100))
    engine.run()
    assert engine.tokens["a"] == expected_tokens(PREFIX[:400], 100)
    assert max(row.num_tokens for step in engine.runner.steps for row in step.rows) == longest_row


def test_a_pool_smaller_than_the_window_limits_the_length() -> None:
    engine = Harness(runner_of([kv_group("sliding", 2, window=WINDOW)]))
    engine.add(fake_request("fits", [1] * 20, 12), fake_request("long", [1] * 20, 13))
    engine.run()
    assert engine.errors() == {"long": "context_length_exceeded"}
    assert engine.tokens["fits"] == expected_tokens([1] * 20, 12)


def test_a_hit_needs_the_last_window_of_a_sliding_group_alone() -> None:
    kv = manager(kv_group("full", 64), kv_group("sliding", 12, window=WINDOW))
    first = grown(kv, PREFIX[:320], chunk=64)
    kv.release(first.tables)
    assert hit(kv, PREFIX[:400]) == 20
    second = grown(kv, PREFIX[320:416], chunk=96)
    assert held(second) == [6, 3]
    kv.release(second.tables)
    assert hit(kv, PREFIX[:400]) == 20, "what left the window first is reused first"
    assert hit(kv, PREFIX[:161]) == 0, "whose window has been overwritten"


def test_a_bad_row_takes_off_offer_what_it_gave_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    runner = runner_of([kv_group("sliding", 40, window=WINDOW)])
    runner.row_error = lambda _, row: "non-finite logits" if row.num_samples else None
    engine = Harness(runner, max_num_batched_tokens=64)
    engine.add(fake_request("a", PREFIX[:300], 4))
    engine.run()
    runner.row_error = None
    engine.add(fake_request("b", PREFIX[:100], 4))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}
    assert engine.last["b"].num_cached_tokens == 0


# -- state ------------------------------------------------------------------------------------------------------


def test_a_state_group_keeps_a_few_blocks_whatever_the_length() -> None:
    kv = manager(kv_group("full", 100), kv_group("state", 10))
    request = grown(kv, PREFIX[:1000], chunk=100)
    assert held(request) == [63, 1]
    assert kv.missing(request, 1050) == (3, 2), "the state at the boundary, and at the end"


def test_states_are_found_at_the_boundaries_that_rows_ended_behind() -> None:
    kv = manager(kv_group("full", 100), kv_group("state", 20))
    kv.release(grown(kv, PREFIX[:108], chunk=36).tables)  # rows end at 36, 72, 108
    assert hit(kv, PREFIX[:200]) == 6
    assert hit(kv, PREFIX[: 6 * BLOCK]) == 4, "not 5: nobody left a state there"
    assert hit(kv, PREFIX[:60]) == 2, "nor 3, whose block held the state after token 36"


def test_rows_of_one_step_do_not_read_each_others_states(depth: int) -> None:
    engine = Harness(runner_of(SPECS["full+state"]), pipeline_depth=depth, max_num_batched_tokens=512)
    engine.add(*(fake_request(str(i), [*PREFIX[:96], i], 4) for i in range(3)))
    engine.step()
    assert [row.start for row in engine.runner.steps[0].rows] == [0, 0, 0]
    engine.add(fake_request("later", [*PREFIX[:96], 9], 4))
    engine.run()
    assert engine.last["later"].num_cached_tokens == 96
    for i in range(3):
        assert engine.tokens[str(i)] == expected_tokens([*PREFIX[:96], i], 4)


def test_the_newest_boundary_of_a_conversation_outlives_the_older_ones() -> None:
    kv = manager(kv_group("state", 8))
    kv.release(grown(kv, PREFIX[:100], chunk=1).tables)
    assert [hit(kv, PREFIX[: n * BLOCK + 1]) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    kv.release(grown(kv, PREFIX[500:570], chunk=1).tables)
    assert hit(kv, PREFIX[:200]) == 6
    assert hit(kv, PREFIX[: 3 * BLOCK + 1]) == 0


def test_drafts_are_not_tried_where_a_state_cannot_go_back(depth: int) -> None:
    runner = runner_of(SPECS["full+state"], draft=lambda context: expected_tokens(context, 3))
    engine = Harness(runner, pipeline_depth=depth)
    engine.add(fake_request("a", PREFIX[:50], 40))
    engine.run()
    assert engine.tokens["a"] == expected_tokens(PREFIX[:50], 40)
    assert runner.num_accepted_drafts == runner.num_rejected_drafts == 0


def test_a_row_that_sampled_nothing_is_computed_again_from_a_boundary(depth: int) -> None:
    runner = runner_of(SPECS["full+state"], withhold=lambda step, _: step.step in (3, 9))
    engine = Harness(runner, pipeline_depth=depth)
    engine.add(fake_request("a", PREFIX[:50], 40))
    engine.run()
    assert engine.tokens["a"] == expected_tokens(PREFIX[:50], 40)
    assert engine.stats.preemptions_total == 2


# -- sizes ------------------------------------------------------------------------------------------------------


def test_the_state_of_the_cache_is_that_of_the_fullest_group() -> None:
    engine = Harness(runner_of([kv_group("full", 160), kv_group("state", 8)]), max_num_batched_tokens=2048)
    engine.add(fake_request("a", PREFIX[:160], 20))
    engine.step()
    assert (engine.stats.blocks_used, engine.stats.blocks_total) == (1, 8)
    engine.add(fake_request("b", PREFIX[:1600], 20))
    engine.step()
    assert (engine.stats.blocks_used, engine.stats.blocks_total) == (101, 160)
    engine.run()


def test_requests_are_limited_by_what_every_group_holds() -> None:
    groups = [kv_group("full", 10), kv_group("state", 3), kv_group("sliding", 8, window=WINDOW)]
    assert EngineCore(runner_of(groups), fake_config()).max_kv_tokens == 160
    assert EngineCore(runner_of(groups[1:]), fake_config()).max_kv_tokens == 2048
    assert EngineCore(runner_of([kv_group("state", 2)]), fake_config()).max_kv_tokens == 32


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([kv_group("cross")], "full, sliding, state, counted, not of 'cross'"),
        ([kv_group("sliding")], "window of at least 1"),
    ],
)
def test_groups_that_cannot_be(groups: list[KVCacheGroup], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manager(*groups)
