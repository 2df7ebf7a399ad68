"""The models that are served: each with names, an engine and a text side of its own."""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from app.contract.info import RunnerInfo
from app.errors import RequestError
from app.serving.engine_client import EngineClient, EngineState
from app.serving.generator import Generator
from app.version import __version__

LATEST = ":latest"
"""What Ollama's clients put behind a name that says nothing of a version."""
_LONGEST_NAME = 128
"""Characters of an unknown name that an error repeats, and of one that may be any."""


class ModelState(enum.StrEnum):
    """Where a served model stands."""

    ABSENT = "absent"
    """Its files are not on this machine."""
    PULLING = "pulling"
    """Its files are being fetched."""
    LOADING = "loading"
    """Its engine starts, for the first time or again."""
    READY = "ready"
    """Its engine takes requests."""
    IDLE = "idle"
    """Its files are here and it has no engine; a request starts one."""
    UNLOADING = "unloading"
    """Its engine takes no more requests and ends with the last one."""
    FAILED = "failed"
    """It has no engine, and gets none any more."""


_OF_ENGINE = {
    EngineState.LOADING: ModelState.LOADING,
    EngineState.READY: ModelState.READY,
    EngineState.DRAINING: ModelState.UNLOADING,
    EngineState.DEAD: ModelState.FAILED,
}


@dataclass(slots=True, eq=False)
class Served:
    """One model that is served."""

    names: tuple[str, ...]
    """Names that clients use; the first is the model's own, which labels metrics and log."""
    generator: Generator
    client: EngineClient
    progress_age: Callable[[], float]
    """Seconds for which the engine had work and showed no progress."""
    stall_limit: Callable[[], float]
    """Seconds without progress after which the supervisor starts the engine again; 0 for never."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time from which it is served."""
    adapter: str = ""
    """Name of the adapter that answers in its place; empty: the model itself does."""

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.names[0]

    @property
    def state(self) -> ModelState:
        """Where the model stands; :meth:`EngineClient.readiness` says why it is not ready."""
        return _OF_ENGINE[self.client.state]

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

    Raises:
        ValueError: there is no model, or two have a name in common, or a model and an adapter.
    """

    def __init__(self, models: Sequence[Served], *, any_name: bool = False) -> None:
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

    def __iter__(self) -> Iterator[Served]:
        """The models, the default one first."""
        return iter(self._models)

    @property
    def default(self) -> Served:
        """The model of requests that name none."""
        return self._models[0]

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
            message = f"The model {name[:_LONGEST_NAME]!r} is not served here; these are: {', '.join(self.names)}."
            raise RequestError(message, status=404, code="model_not_found", param="model")
        return self._by_name[name]

    def drain(self) -> None:
        """Refuses new requests for every model; requests in flight go on."""
        for served in self:
            served.client.drain()
