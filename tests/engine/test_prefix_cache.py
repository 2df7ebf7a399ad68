"""Prefix sharing: within a step, between steps, and where it must not happen."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from app.engine.kv import chain
from tests.engine.harness import Harness
from tests.fakes import FakeRunner, expected_tokens, fake_request

PREFIX = [(7 * i) % 1000 for i in range(512)]


def test_sixteen_requests_of_one_step_compute_their_prefix_once(depth: int) -> None:
    runner = FakeRunner(num_blocks=128, max_model_len=1024)
    engine = Harness(runner, pipeline_depth=depth, max_num_seqs=16, max_num_batched_tokens=1024)
    prompts = {str(i): [*PREFIX, i, i + 1] for i in range(16)}
    engine.add(*(fake_request(key, prompt, 4) for key, prompt in prompts.items()))
    engine.step()
    assert len(runner.steps[0].rows) == 16, "all in one step"
    assert runner.steps[0].num_tokens == 512 + 16 * 2
    engine.run()
    assert engine.tokens == {key: expected_tokens(prompt, 4) for key, prompt in prompts.items()}
    assert engine.stats.prompt_tokens_total == 512 + 16 * 2
    assert engine.stats.prefix_hit_tokens_total == 15 * 512
    assert engine.stats.prefix_query_tokens_total == 16 * 514
    assert [engine.last[str(i)].num_cached_tokens for i in range(16)] == [0] + [512] * 15


def test_a_prefix_longer_than_the_budget_is_computed_once(depth: int) -> None:
    runner = FakeRunner(num_blocks=128, max_model_len=1024)
    engine = Harness(runner, pipeline_depth=depth, max_num_batched_tokens=100)
    engine.add(*(fake_request(str(i), [*PREFIX, i], 4) for i in range(8)))
    engine.run()
    assert engine.stats.prompt_tokens_total == 512 + 8
    assert engine.tokens == {str(i): expected_tokens([*PREFIX, i], 4) for i in range(8)}


def test_the_last_prompt_token_is_always_computed(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    prompt = PREFIX[:64]
    engine.add(fake_request("a", prompt, 4))
    engine.run()
    engine.add(fake_request("b", prompt, 4))
    engine.run()
    assert engine.last["b"].num_cached_tokens == 48
    assert engine.tokens["b"] == engine.tokens["a"] == expected_tokens(prompt, 4)


def test_generated_tokens_are_cached_for_the_next_turn(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    engine.add(fake_request("a", PREFIX[:20], 30))
    engine.run()
    turn = [*PREFIX[:20], *engine.tokens["a"], 1, 2, 3]
    engine.add(fake_request("b", turn, 4))
    engine.run()
    assert engine.last["b"].num_cached_tokens == 48, "49 tokens have KV: all but the last sampled one"
    assert engine.tokens["b"] == expected_tokens(turn, 4)


def test_salts_keep_tenants_apart(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    for key, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        engine.add(fake_request(key, PREFIX[:100], 2, cache_salt=salt))
        engine.run()
    assert [engine.last[key].num_cached_tokens for key in "abc"] == [0, 0, 96]


def test_prompt_logprobs_skip_the_lookup_but_their_blocks_are_shared(depth: int) -> None:
    engine = Harness(pipeline_depth=depth)
    for key, prompt_logprobs in (("a", 0), ("b", 2), ("c", None)):
        engine.add(fake_request(key, PREFIX[:100], 2, prompt_logprobs=prompt_logprobs))
        engine.run()
    assert [engine.last[key].num_cached_tokens for key in "abc"] == [0, 0, 96]
    reported = engine.first["b"].prompt_logprobs
    assert reported is not None
    assert [entry.token_id for entry in reported] == PREFIX[1:100]
    assert len(reported[0].top) == 2
    assert engine.first["c"].prompt_logprobs is None


def test_prompt_logprobs_are_chunked_by_logit_rows_and_come_in_one_piece(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, max_logit_rows=16, max_num_batched_tokens=64)
    engine.add(fake_request("a", PREFIX[:100], 3, prompt_logprobs=1, logprobs=1), fake_request("b", [1], 20))
    engine.run()
    assert max(step.num_logit_rows for step in engine.runner.steps) <= 16
    reported = engine.first["a"].prompt_logprobs
    assert reported is not None
    assert [entry.token_id for entry in reported] == PREFIX[1:100]
    assert engine.last["a"].prompt_logprobs is None
    assert engine.tokens["a"] == expected_tokens(PREFIX[:100], 3)
    assert engine.order == ["a", "b"]


def test_prompt_logprobs_survive_a_preemption_in_mid_prompt(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=12), pipeline_depth=depth, max_logit_rows=16, max_num_seqs=2)
    engine.add(
        fake_request("low0", [1], 90, priority=1), fake_request("low1", PREFIX[:100], 3, priority=1, prompt_logprobs=0)
    )
    for _ in range(4):
        engine.step()
    assert "low1" not in engine.tokens
    engine.add(fake_request("high", [2], 20, priority=0))
    engine.run()
    assert engine.stats.preemptions_total > 0
    reported = engine.first["low1"].prompt_logprobs
    assert reported is not None
    assert [entry.token_id for entry in reported] == PREFIX[1:100]


def test_without_prefix_caching_nothing_is_shared(depth: int) -> None:
    engine = Harness(pipeline_depth=depth, enable_prefix_caching=False)
    for key in "ab":
        engine.add(fake_request(key, PREFIX[:100], 2))
        engine.run()
    assert engine.stats.prompt_tokens_total == 200
    assert engine.stats.prefix_query_tokens_total == 0


def test_tokens_decide_when_hashes_collide(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    same_for_all = SimpleNamespace(sha256=lambda _: hashlib.sha256())
    monkeypatch.setattr(chain, "hashlib", same_for_all)
    engine = Harness(pipeline_depth=depth)
    for key, token in (("a", 1), ("b", 2), ("c", 1)):
        engine.add(fake_request(key, [token] * 30, 4))
        engine.run()
    assert [engine.last[key].num_cached_tokens for key in "abc"] == [0, 0, 16]
    assert engine.tokens["b"] == expected_tokens([2] * 30, 4)


def test_cached_blocks_are_evicted_least_recently_used_first(depth: int) -> None:
    engine = Harness(FakeRunner(num_blocks=8), pipeline_depth=depth)
    for key, prompt in (("a", [1] * 48), ("b", [2] * 48), ("a2", [1] * 48), ("c", [3] * 80), ("a3", [1] * 48)):
        engine.add(fake_request(key, prompt, 1))
        engine.run()
    assert engine.last["a3"].num_cached_tokens == 32
    engine.add(fake_request("b2", [2] * 48, 1))
    engine.run()
    assert engine.last["b2"].num_cached_tokens < 32
