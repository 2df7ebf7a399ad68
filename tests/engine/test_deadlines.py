"""Deadlines: who expires when, and that those who ended in time leave nothing behind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.engine.deadlines import Deadlines
from tests.engine.harness import Harness
from tests.fakes import fake_request

events = st.lists(
    st.tuples(st.sampled_from(["watch", "forget", "wait"]), st.sampled_from("abcdef"), st.integers(0, 20)), max_size=60
)


@given(events)
def test_whoever_is_watched_expires_once_at_its_last_deadline(history: list[tuple[str, str, int]]) -> None:
    kept, expected, now = Deadlines(), dict[str, float](), 0.0
    for action, name, value in history:
        if action == "watch" and name not in expected:
            kept.watch(name, now + value)
            expected[name] = now + value
        elif action == "forget":
            kept.forget(name)
            expected.pop(name, None)
        elif action == "wait":
            now += value
            due = sorted((deadline, other) for other, deadline in expected.items() if deadline <= now)
            assert kept.pop_expired(now) == [other for _, other in due]
            expected = {other: deadline for other, deadline in expected.items() if deadline > now}


def test_those_who_end_in_time_leave_nothing_behind() -> None:
    engine = Harness()
    for i in range(500):
        engine.add(fake_request(str(i), [1], 1, deadline=1e9))
        engine.run()
    assert len(engine.core._deadlines._heap) <= 64


def test_a_deadline_in_the_past_is_answered_without_work() -> None:
    engine = Harness()
    engine.now = 5.0
    engine.add(fake_request("late", [1] * 40, 8, deadline=4.0), fake_request("b", [2], 2, deadline=6.0))
    engine.run()
    assert engine.errors() == {"late": "deadline_exceeded"}
    assert engine.runner.steps[0].num_tokens == 1


def test_an_id_used_again_has_its_own_deadline() -> None:
    engine = Harness()
    engine.add(fake_request("a", [1], 1, deadline=3.0))
    engine.run()
    engine.last.clear()
    engine.add(fake_request("a", [1], 8, deadline=100.0))
    engine.now = 4.0
    engine.run()
    assert engine.errors() == {}
