"""Durations as people and Ollama's clients write them."""

from __future__ import annotations

import pytest

from app.duration import FOREVER, read_duration


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0), ("0", 0), (30, 30), ("30", 30), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), (" 300ms ", 0.3), ("0s", 0)],
)
def test_seconds(given: str | float, seconds: float) -> None:
    assert read_duration(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", [-1, "-1", "-1m", -0.5, "inf", 1e400])
def test_for_ever(given: str | float) -> None:
    assert read_duration(given) == FOREVER


@pytest.mark.parametrize("given", ["", "m", "5 m", "five", "1h30", "5x", float("nan"), "nan", "1" * 65, "--1s"])
def test_what_is_none(given: str | float) -> None:
    with pytest.raises(ValueError, match="duration"):
        read_duration(given)
