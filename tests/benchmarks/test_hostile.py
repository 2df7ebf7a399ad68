"""What the benchmark of hostile forms asks for, and what it finds broken."""

from __future__ import annotations

import json
import math

from benchmarks.bench_hostile import Phase, Plan, Visit, check, ratio
from benchmarks.hostile import KINDS, hostile

PLAN = Plan(
    rounds=1, duration=1.0, neighbours=1, output_len=8, rate=1.0, visit_len=1, bound=2.0, limit=1.2
)  # fmt: skip


def rounds(quiet: float, beside: float, *visits: Visit) -> list[dict[str, Phase]]:
    """One round with such gaps, in seconds."""
    return [{"quiet": Phase([quiet] * 3), "plain": Phase([quiet] * 3), "hostile": Phase([beside] * 3, [*visits])}]


def test_every_kind_comes_and_no_form_comes_twice() -> None:
    made = [hostile(number) for number in range(2 * len(KINDS))]
    assert [kind for kind, _ in made] == [*KINDS, *KINDS]
    assert len({json.dumps(body) for _, body in made}) == len(made)


def test_a_ratio_is_the_median_over_the_rounds() -> None:
    seen = rounds(0.1, 0.1) + rounds(0.1, 0.2) + rounds(0.2, 0.3)
    assert math.isclose(ratio(seen, "hostile", 50), 1.5)
    assert math.isclose(ratio(seen, "plain", 99), 1.0)
    assert math.isnan(ratio([{"quiet": Phase(), "plain": Phase(), "hostile": Phase()}], "hostile", 50))


def test_what_is_kept_and_what_is_not() -> None:
    tolerated = [Visit("deep", status, 1.0) for status in (200, 400, 429)]
    assert check(rounds(0.1, 0.11, *tolerated), PLAN) == []
    assert len(check(rounds(0.1, 0.13), PLAN)) == 1
    late, broken, silent = Visit("deep", 200, 2.5), Visit("deep", 500, 0.1), Visit("deep", None, 0.1)
    assert len(check(rounds(0.1, 0.1, late, broken, silent), PLAN)) == 3
    failed = rounds(0.1, 0.1)
    failed[0]["quiet"].errors.append("http_500")
    assert len(check(failed, PLAN)) == 1
