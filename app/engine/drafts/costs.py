"""What a guess costs: learnt from the engine's own steps, as it hangs on model, machine and load."""

from __future__ import annotations

_FADING = 0.98
"""Weight of all earlier steps, when the next is added."""
_LEAST_SPREAD = 0.05
"""Variance of the numbers of guesses below which steps do not tell what one costs."""
_OUTLIER = 3.0
"""A step that takes so many times what was expected was held up by something else."""


class _Line:
    """Seconds of steps of one number of rows as a line over their guesses, by least squares; older steps fade."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, num_drafts: int, seconds: float) -> None:
        expected = self.seconds(num_drafts)
        if expected > 0:
            seconds = min(seconds, _OUTLIER * expected)
        self._n = self._n * _FADING + 1
        self._x = self._x * _FADING + num_drafts
        self._y = self._y * _FADING + seconds
        self._xx = self._xx * _FADING + num_drafts * num_drafts
        self._xy = self._xy * _FADING + num_drafts * seconds

    @property
    def slope(self) -> float:
        """Seconds that one more guess takes; 0 as long as the steps do not tell."""
        if self._n == 0.0:
            return 0.0
        mean = self._x / self._n
        spread = self._xx / self._n - mean * mean
        if spread < _LEAST_SPREAD:
            return 0.0
        return max(0.0, (self._xy / self._n - mean * self._y / self._n) / spread)

    def seconds(self, num_drafts: int) -> float:
        """Seconds of a step with so many guesses; 0 before the first step."""
        if self._n == 0.0:
            return 0.0
        return max(0.0, self._y / self._n + self.slope * (num_drafts - self._x / self._n))


class StepCosts:
    """Seconds of steps that do nothing but sample, by their rows and guesses.

    As long as no step says what a guess costs it counts as free, so that one is tried; and again when it is long ago
    that one was.

    Args:
        max_rows: rows of a step from which on no guess is worth its cost.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._lines: dict[int, _Line] = {}

    def add(self, num_rows: int, num_drafts: int, seconds: float) -> None:
        """Takes the seconds of a step whose rows computed nothing but what they sampled."""
        if num_rows <= self.max_rows and seconds > 0:
            self._lines.setdefault(num_rows, _Line()).add(num_drafts, seconds)

    def least_chance(self, num_rows: int, num_drafts: int, num_expected: float) -> float:
        """Chance of being right with which one more guess gives as many tokens a second as the step without it.

        Args:
            num_rows: rows of the step.
            num_drafts: guesses that the step has already.
            num_expected: tokens that these are expected to give, beside one a row.
        """
        if num_rows > self.max_rows:
            return 1.0
        line = self._lines.get(num_rows)
        whole = line.seconds(num_drafts) if line is not None else 0.0
        if line is None or whole <= 0:
            return 0.0
        return min(1.0, line.slope * (num_rows + num_expected) / whole)
