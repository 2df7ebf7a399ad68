"""Any mix of arrivals, aborts, deadlines, priorities, drafts and failures gives the reference's text."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.contract.info import KVCacheGroup
from app.contract.request import FinishReason, GenerateRequest
from app.contract.step import ScheduledRow, StepPlan
from tests.engine.harness import Harness
from tests.fakes import FakeRunner, expected_tokens, fake_request, hash_token, kv_group

VOCAB = 60
LONGEST = 256
EOS = 7
PREFIX = [(11 * i) % VOCAB for i in range(200)]


def next_token(context: Sequence[int]) -> int:
    """Any token, or as often as not the one that stood eleven places before."""
    drawn = hash_token(context)
    return drawn // 2 % VOCAB if drawn % 2 or len(context) < 11 else context[-11]


def draw(*parts: int) -> int:
    return zlib.crc32(repr(parts).encode())


def guess(context: Sequence[int]) -> list[int]:
    roll = draw(*context)
    truth = expected_tokens(context, roll % 4, next_token=next_token)
    return [token if i < roll // 4 % 4 else (token + 1) % VOCAB for i, token in enumerate(truth)]


@dataclass(frozen=True)
class Job:
    """One request of a scenario."""

    arrives: int
    shared: int
    """Prompt tokens in common with everybody else."""
    own: int
    max_tokens: int
    priority: int
    aborted_after: int | None
    deadline_after: int | None
    prompt_logprobs: bool
    tenant: bool

    def request(self, index: int) -> GenerateRequest:
        return fake_request(
            str(index),
            PREFIX[: self.shared] + [index % VOCAB] * self.own,
            self.max_tokens,
            priority=self.priority,
            arrival_time=float(self.arrives),
            deadline=None if self.deadline_after is None else float(self.arrives + self.deadline_after),
            prompt_logprobs=1 if self.prompt_logprobs else None,
            cache_salt="b" if self.tenant else "a",
        )


jobs = st.builds(
    Job,
    arrives=st.integers(0, 30),
    shared=st.integers(0, 70),
    own=st.integers(1, 30),
    max_tokens=st.integers(1, 40),
    priority=st.integers(0, 2),
    aborted_after=st.none() | st.integers(0, 20),
    deadline_after=st.none() | st.none() | st.integers(1, 40),
    prompt_logprobs=st.sampled_from([False, False, False, True]),
    tenant=st.sampled_from([False, False, False, True]),
)


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and how often (0: never)."""

    failing_steps: frozenset[int]
    fail_in_submit: bool
    withhold: int
    drafts: bool
    bad_rows: int

    def runner(self, groups: list[KVCacheGroup]) -> FakeRunner:
        def fails(step: StepPlan) -> bool:
            return step.step in self.failing_steps and step.step - 1 not in self.failing_steps

        def withhold(step: StepPlan, row: ScheduledRow) -> bool:
            return bool(self.withhold) and draw(step.step, row.slot) % self.withhold == 0

        def bad_row(step: StepPlan, row: ScheduledRow) -> str | None:
            bad = bool(self.bad_rows) and draw(row.slot, step.step, 1) % self.bad_rows == 0
            return "bad row" if bad else None

        return FakeRunner(
            groups=groups,
            vocab_size=VOCAB,
            max_model_len=LONGEST,
            next_token=next_token,
            draft=guess if self.drafts else None,
            withhold=withhold,
            row_error=bad_row,
            fail_submit=fails if self.fail_in_submit else None,
            fail_collect=None if self.fail_in_submit else fails,
        )


faults = st.builds(
    Faults,
    failing_steps=st.just(frozenset()) | st.frozensets(st.integers(0, 60), max_size=8),
    fail_in_submit=st.booleans(),
    withhold=st.sampled_from([0, 0, 3, 10]),
    drafts=st.booleans(),
    bad_rows=st.sampled_from([0, 0, 40]),
)


full = st.builds(kv_group, st.just("full"), st.integers(9, 40))
sliding = st.builds(kv_group, st.just("sliding"), st.integers(6, 30), window=st.integers(2, 70))
state = st.builds(kv_group, st.just("state"), st.integers(3, 20))


@given(
    scenario=st.lists(jobs, min_size=1, max_size=12),
    fault=faults,
    groups=st.tuples(full)
    | st.tuples(full, sliding)
    | st.tuples(sliding, full, sliding)
    | st.tuples(full, state)
    | st.tuples(sliding)
    | st.tuples(state, sliding),
    depth=st.integers(1, 3),
    max_num_seqs=st.integers(1, 8),
    budget=st.integers(1, 64),
    logit_rows=st.integers(1, 32),
    caching=st.sampled_from([True, True, True, False]),
    draft=st.sampled_from(["none", "lookup", "history"]),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_schedule_gives_the_same_text(
    scenario: list[Job],
    fault: Faults,
    groups: tuple[KVCacheGroup, ...],
    depth: int,
    max_num_seqs: int,
    budget: int,
    logit_rows: int,
    caching: bool,
    draft: str,
) -> None:
    logging.getLogger("app.engine.core").setLevel(logging.CRITICAL)
    engine = Harness(
        fault.runner(list(groups)),
        pipeline_depth=depth,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_logit_rows=logit_rows,
        enable_prefix_caching=caching,
        draft=draft,
        draft_ngram=2,
        eos_token_ids=(EOS,),
    )
    play(engine, scenario)
    for index, job in enumerate(scenario):
        check_answer(engine, fault, job, index)
    check_all_slots_are_back(engine, max_num_seqs, budget, logit_rows)


def play(engine: Harness, scenario: list[Job]) -> None:
    """Runs the scenario; the clock is the number of steps."""
    waits = max(job.arrives + (job.aborted_after or 0) for job in scenario)
    for _ in range(20_000):
        now = int(engine.now)
        for index, job in enumerate(scenario):
            if job.arrives == now:
                engine.add(job.request(index))
            if job.aborted_after is not None and job.arrives + job.aborted_after == now:
                engine.core.abort([str(index)])
        if now > waits and not engine.core.has_work:
            break
        engine.step()
        engine.now += 1.0
    engine.check_baseline()


def check_answer(engine: Harness, fault: Faults, job: Job, index: int) -> None:
    request = job.request(index)
    answer = engine.last[request.request_id]
    tokens = engine.tokens[request.request_id]
    expected = expected_tokens(request.prompt_token_ids, job.max_tokens, stop_token_ids=[EOS], next_token=next_token)
    assert tokens == expected[: len(tokens)]
    if answer.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
        assert tokens == expected
        assert (answer.finish_reason is FinishReason.STOP) == (expected[-1] == EOS)
        if job.prompt_logprobs:
            reported = engine.first[request.request_id].prompt_logprobs
            assert reported is not None
            assert [entry.token_id for entry in reported] == request.prompt_token_ids[1:]
    elif answer.finish_reason is FinishReason.ABORT:
        assert job.aborted_after is not None
    else:
        code = engine.errors()[request.request_id]
        possible = {
            "deadline_exceeded": job.deadline_after is not None,
            "engine_error": bool(fault.failing_steps or fault.bad_rows),
            "context_length_exceeded": len(request.prompt_token_ids) + job.max_tokens > engine.core.max_kv_tokens,
        }
        assert possible[code]


def check_all_slots_are_back(engine: Harness, max_num_seqs: int, budget: int, logit_rows: int) -> None:
    runner = engine.runner
    runner.fail_submit = runner.fail_collect = runner.row_error = runner.withhold = None
    blocks = min(group.num_blocks for group in runner.info.kv_cache.groups)
    width = min(max_num_seqs, budget, logit_rows, blocks // 2)  # each has a block to grow by
    engine.add(*(fake_request(f"last{i}", [i], 1) for i in range(width)))
    engine.step()
    assert len(runner.steps[-1].rows) == width
    engine.run()


@pytest.mark.parametrize("depth", [1, 2])
def test_the_scenarios_reach_what_they_are_meant_to_test(depth: int) -> None:
    scenario = [Job(i, 64, 1 + i, 40, i % 3, None, None, False, False) for i in range(12)]
    fault = Faults(frozenset({40}), fail_in_submit=False, withhold=10, drafts=True, bad_rows=0)
    engine = Harness(
        fault.runner([kv_group("full", 16)]),
        pipeline_depth=depth,
        max_num_seqs=6,
        max_num_batched_tokens=24,
        eos_token_ids=(EOS,),
    )
    play(engine, scenario)
    assert engine.stats.preemptions_total > 0
    assert engine.stats.prefix_hit_tokens_total > 0
    assert engine.runner.num_accepted_drafts > 0
    assert engine.runner.num_rejected_drafts > 0
    assert "engine_error" in engine.errors().values()
    assert FinishReason.STOP in engine.reasons(engine.last)
