"""How many guesses a request is worth, and what steps say of their cost."""

from __future__ import annotations

import pytest

from app.engine.drafts.costs import StepCosts
from app.engine.drafts.pace import Pace


def test_right_guesses_bring_more_and_wrong_ones_fewer() -> None:
    pace = Pace(0.5)
    before = pace.most(0.1)
    for _ in range(5):
        pace.note(4, 4)
    after = pace.most(0.1)
    assert 0 < before < after
    for _ in range(20):
        pace.note(4, 0)
    assert pace.most(0.1) == 0


def test_guesses_behind_the_first_wrong_one_say_nothing() -> None:
    long, short = Pace(0.5), Pace(0.5)
    for _ in range(3):
        long.note(8, 1)
        short.note(2, 1)
    assert long.rate == short.rate


def test_a_dearer_guess_has_to_be_likelier() -> None:
    pace = Pace(0.5)
    counts = [pace.most(chance) for chance in (0.05, 0.2, 0.45, 0.9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_pauses_grow_until_guesses_are_right_again() -> None:
    pace, at, pauses = Pace(0.5), 100, []
    for _ in range(3):
        pace.rest(at)
        pauses.append(next(n for n in range(10_000) if not pace.rests(at + n)))
        at += pauses[-1]
    assert pauses == [16, 32, 64]
    pace.note(4, 4)
    pace.rest(at)
    assert not pace.rests(at + 16)


def fed(*steps: tuple[int, int, float], max_rows: int = 8) -> StepCosts:
    costs = StepCosts(max_rows)
    for _ in range(20):
        for step in steps:
            costs.add(*step)
    return costs


def test_a_guess_is_free_until_steps_say_what_it_costs() -> None:
    assert StepCosts(8).least_chance(1, 0, 0.0) == 0.0
    assert fed((1, 0, 0.01)).least_chance(1, 0, 0.0) == 0.0


def test_what_a_guess_costs_is_its_share_of_the_step() -> None:
    costs = fed((1, 0, 0.010), (1, 4, 0.014), (4, 0, 0.02), (4, 8, 0.1))
    assert costs.least_chance(1, 0, 0.0) == pytest.approx(0.1)  # 1 ms for a guess, 10 ms for the one token
    assert costs.least_chance(1, 4, 2.0) == pytest.approx(3 * 0.001 / 0.014)
    assert costs.least_chance(4, 0, 0.0) == 1.0  # a guess takes as long as two rows


def test_steps_with_many_rows_have_no_guesses() -> None:
    assert fed((9, 0, 0.01), (9, 4, 0.01)).least_chance(9, 0, 0.0) == 1.0


def test_a_cost_that_is_long_ago_is_found_out_anew() -> None:
    costs = fed((1, 0, 0.010), (1, 4, 0.060))
    assert costs.least_chance(1, 0, 0.0) == 1.0
    for _ in range(400):
        costs.add(1, 0, 0.010)
    assert costs.least_chance(1, 0, 0.0) == 0.0


def test_a_step_that_was_held_up_counts_little() -> None:
    costs = fed((1, 0, 0.010), (1, 4, 0.014))
    costs.add(1, 4, 10.0)
    assert costs.least_chance(1, 0, 0.0) < 0.4
