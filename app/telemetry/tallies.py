"""A counter and a histogram for what happens once a token: the library's take a lock for each increment.

Only the API process's event loop adds to them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally(Collector):
    """One counter series."""

    def __init__(self, name: str, text: str, labels: Mapping[str, str]) -> None:
        self._name, self._text, self._labels = name, text, dict(labels)
        self._value = 0.0

    def inc(self, amount: float) -> None:
        """Adds a number that is not negative."""
        self._value += amount

    def collect(self) -> Iterable[Metric]:
        """The series, as the one family that Prometheus scrapes."""
        family = CounterMetricFamily(self._name, self._text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), self._value)
        yield family


class Spread(Collector):
    """One histogram series.

    Args:
        bounds: upper bounds of the buckets, ascending; a last bucket has no bound.
    """

    def __init__(self, name: str, text: str, labels: Mapping[str, str], bounds: Sequence[float]) -> None:
        self._name, self._text, self._labels = name, text, dict(labels)
        self._bounds = list(bounds)
        self._names = [*map(repr, map(float, bounds)), "+Inf"]
        self._counts = [0] * len(self._names)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Adds one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        """The series, as the one family that Prometheus scrapes."""
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        buckets = list(zip(self._names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family
