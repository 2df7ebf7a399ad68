"""The models that are served: each with names, an engine and a text side of its own."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Self

from app.contract.info import RunnerInfo
from app.errors import RequestError
from app.nearest import did_you_mean
from app.serving.engine_client import EngineClient
from app.serving.generator import Generator
from app.serving.residency import Residency
from app.serving.resident import Resident
from app.serving.states import OF_ENGINE, ModelState
from app.version import __version__

LATEST = ":latest"
"""What Ollama's clients put behind a name that says nothing of a version."""
_LONGEST_NAME = 128
"""Characters of an unknown name that an error repeats, and of one that may be any."""


@dataclass(slots=True, eq=False)
class Served:
    """One model that is served."""

    names: tuple[str, ...]
    """Names that clients use; the first is the model's own, which labels metrics and log."""
    text_side: Generator | None
    """None: the resident's."""
    client: EngineClient
    progress_age: Callable[[], float]
    """Seconds for which the engine had work and showed no progress."""
    stall_limit: Callable[[], float]
    """Seconds without progress after which the supervisor starts the engine again; 0 for never."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time from which it is served."""
    resident: Resident | None = None
    """What loads and unloads the model; None: its engine is always there."""
    adapter: str = ""
    """Name of the adapter that answers in its place; empty: the model itself does."""

    @classmethod
    def coming_and_going(cls, names: tuple[str, ...], resident: Resident) -> Self:
        """A model that is loaded when it is asked for."""
        life = resident.life
        return cls(names, None, life.client, life.client.progress_age, life.stall_limit, resident=resident)

    @property
    def generator(self) -> Generator:
        """The text side. Raises :class:`RequestError` 503 before it is there."""
        generator = self.known_generator
        if generator is None:
            raise self.client.unavailable() or RequestError("The model is not available.", status=503)
        return generator

    @property
    def known_generator(self) -> Generator | None:
        """The text side; None before it is there."""
        return self.resident.life.generator if self.resident is not None else self.text_side

    def in_use(
        self, ends: float | None, *, endpoint: str, keep_alive: float | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Keeps the model loaded while the block runs; where models come and go, it waits for it first.

        Args:
            ends: instant of ``time.monotonic`` at which the wait is given up.
            endpoint: the route's template, for metrics.
            keep_alive: seconds that the model then stays without work; None: as its settings say.

        Raises:
            RequestError: 503 (cannot be loaded, draining), 429 (too many wait for it), 504 (``ends``).
        """
        if self.resident is None:
            return contextlib.nullcontext()
        return self.resident.in_use(ends, endpoint=endpoint, keep_alive=keep_alive)

    @property
    def is_loaded(self) -> bool:
        """Whether it has an engine, or one that is being restarted; where all stay it always has."""
        return self.resident is None or self.resident.life.is_loaded

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.names[0]

    @property
    def state(self) -> ModelState:
        """Where the model stands; :meth:`EngineClient.readiness` says why it is not ready."""
        return OF_ENGINE[self.client.state] if self.resident is None else self.resident.life.state

    def info(self) -> RunnerInfo:
        """Facts about the loaded model. Raises :class:`RequestError` 503 before its engine's first start."""
        if self.client.ready is None:
            raise self.client.unavailable() or RequestError("The model is not available.", status=503)
        return self.client.ready.info

    def fingerprint(self) -> str:
        """Changes when the same request may be answered otherwise: another model, precision, device or version.

        Raises:
            RequestError: 503, as :meth:`info`.
        """
        info = self.info()
        parts = (__version__, self.name, info.num_parameters, info.dtype, info.kv_cache_dtype)
        text = "|".join(
            map(str, (*parts, info.device, info.quantization, info.kernels, *filter(None, [info.via, self.adapter])))
        )
        return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class ServedModels:
    """The set of served models, found by the names that clients use.

    Args:
        models: at least one; the first answers requests that name none.
        any_name: names that no model has mean the first one, too.
        residency: where they come and go; None: all stay.

    Raises:
        ValueError: there is no model, or two have a name in common, or a model and an adapter.
    """

    def __init__(self, models: Sequence[Served], *, any_name: bool = False, residency: Residency | None = None) -> None:
        if not models:
            raise ValueError("there is no model to serve")
        self._by_name: dict[str, Served] = {}
        for served in models:
            for name in served.names:
                if self._by_name.setdefault(name, served) is not served:
                    raise ValueError(f"two models are served as {name!r}")
        for name in (name for served in models for name in served.client.adapters.names):
            if name in self._by_name:
                raise ValueError(f"a model and an adapter are served as {name!r}")
        self._models = list(models)
        self._any_name = any_name
        self._residency = residency

    def __iter__(self) -> Iterator[Served]:
        """The models, the default one first."""
        return iter(self._models)

    @property
    def default(self) -> Served:
        """The model of requests that name none."""
        return self._models[0]

    @property
    def come_and_go(self) -> bool:
        """Whether models are loaded as they are asked for, each in a state of its own."""
        return self._residency is not None

    @property
    def names(self) -> list[str]:
        """All names of all models, and of their adapters."""
        return [*self._by_name, *(name for served in self for name in served.client.adapters.names)]

    def _adapted(self, name: str) -> Served | None:
        """The model of an adapter, which answers in its place; None where there is no such adapter."""
        return next((replace(served, adapter=name) for served in self if name in served.client.adapters), None)

    def resolve(self, name: str | None) -> Served:
        """The model of a name, or of an adapter's, :data:`LATEST` behind it or not; the default one for None, and for
        unknown names if any may be used.

        Raises:
            RequestError: 404, no model is served under that name.
        """
        if name is not None and name not in self._by_name:
            given, name = name, name.removesuffix(LATEST)
            if name not in self._by_name and (adapted := self._adapted(given) or self._adapted(name)) is not None:
                return adapted
        if name is None or (self._any_name and name not in self._by_name and len(name) <= _LONGEST_NAME):
            return self.default
        if name not in self._by_name:
            shown, near = name[:_LONGEST_NAME], did_you_mean(name, self.names)
            message = f"The model {shown!r} is not served here{near}; these are: {', '.join(self.names)}."
            raise RequestError(message, status=404, code="model_not_found", param="model")
        return self._by_name[name]

    def drain(self) -> None:
        """Refuses new requests for every model, and those that wait for one; requests in flight go on."""
        if self._residency is not None:
            self._residency.drain()
        for served in self:
            served.client.drain()
