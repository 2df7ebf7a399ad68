"""Collectors of models that come and go."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.telemetry.metrics import Metrics

MODEL_STATES = ("absent", "pulling", "loading", "ready", "idle", "unloading", "failed")

_OUTCOMES = ("ready", "failed")


class ResidentMetrics:
    """Collectors of one of these models, on the page of its others."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        name, registry = metrics.model_name, CollectorRegistry()
        metrics.show(registry)
        self._state = Gauge(
            "tuili_model_state", "1 for the model's present state.", ["model_name", "state"], registry=registry
        )
        self._loads = Counter(
            "tuili_model_loads", "Loads that ended, by outcome.", ["model_name", "outcome"], registry=registry
        )
        self._unloads = Counter(
            "tuili_model_unloads", "Times that a model was unloaded, and why.", ["model_name", "why"], registry=registry
        )
        self._seconds = Gauge(
            "tuili_model_load_seconds", "Time of the last load, pull included.", ["model_name"], registry=registry
        ).labels(name)
        self._name = name

    def observe_state(self, state: str) -> None:
        """Shows one of :data:`MODEL_STATES` as the present one."""
        for known in MODEL_STATES:
            self._state.labels(self._name, known).set(known == state)

    def observe_load(self, state: str, seconds: float) -> None:
        """Counts a load that ended with the model in a state: ready, failed, or, where it was given up, another."""
        self._loads.labels(self._name, state if state in _OUTCOMES else "given_up").inc()
        self._seconds.set(seconds)

    def observe_unload(self, why: str) -> None:
        """Counts a model that is loaded no more."""
        self._unloads.labels(self._name, why).inc()

    def observe_refusal(self, endpoint: str, reason: str) -> None:
        """Counts a request that the model was not loaded for."""
        self._metrics.observe_refusal(endpoint, reason)
