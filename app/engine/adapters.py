"""Adapters that the engine has loaded: which slot of the runner each has, and which requests still need it.

A slot is filled by a thread while steps go on: no row of theirs reads it. It comes free when its adapter was unloaded
and the last request that was taken for it has ended.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.contract.config import AdapterSource, EngineConfig
from app.contract.frames import AdapterOutcome, EngineError

_log = logging.getLogger(__name__)


@runtime_checkable
class AdapterRunner(Protocol):
    """A runner with room for adapters."""

    def load_adapter(self, slot: int, path: str, /) -> None:
        """Reads an adapter's directory into a slot that no row of a step has. Any thread may call it.

        Raises:
            ValueError: it cannot be served; one line says why.
        """


@dataclass(eq=False, slots=True)
class LoadedAdapter:
    """An adapter in a slot."""

    name: str
    slot: int
    identity: str
    """Names its contents in the prefix cache: no adapter of other contents has it, loaded under whatever name."""
    num_requests: int = 0
    """Requests that need it and have not ended."""


@dataclass(frozen=True, slots=True)
class _Loading:
    """An adapter on its way into a slot."""

    name: str
    slot: int
    future: Future[str]
    """Its digest of contents, as the table's ``contents_of`` gives it."""


class AdapterTable:
    """All slots for adapters. Only the engine's thread calls it."""

    def __init__(
        self,
        runner: object,
        config: EngineConfig,
        on_loaded: Callable[[], None] = lambda: None,
        *,
        contents_of: Callable[[str], str] | None = None,
    ) -> None:
        """
        Args:
            on_loaded: called from another thread when :attr:`has_outcomes` has become true.
            contents_of: digest of the contents of an adapter's directory, or empty text; None: no block outlives the
                process, and each loading counts as an adapter of its own.

        Raises:
            ValueError: an adapter that is required cannot be loaded.
        """
        self._runner, self._on_loaded, self._contents_of = runner, on_loaded, contents_of
        self._num_slots = config.max_adapters
        self._by_name: dict[str, LoadedAdapter] = {}
        self._leaving: list[LoadedAdapter] = []
        """Adapters that were unloaded while requests needed them."""
        self._loading: list[_Loading] = []
        self._outcomes: deque[AdapterOutcome] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._num_loaded = 0
        for source in config.adapters:
            self._load_at_start(source)

    @property
    def names(self) -> list[str]:
        """Names of the adapters that requests may ask for."""
        return list(self._by_name)

    @property
    def has_outcomes(self) -> bool:
        """Whether :meth:`take_outcomes` has anything."""
        return bool(self._outcomes) or any(loading.future.done() for loading in self._loading)

    def find(self, name: str) -> LoadedAdapter | EngineError:
        """The adapter of a request."""
        found = self._by_name.get(name)
        return EngineError("adapter_not_found", f"the adapter {name!r} is not loaded") if found is None else found

    def load(self, name: str, path: str) -> None:
        """Begins to load an adapter; :meth:`take_outcomes` says how it went."""
        slot = self._free_slot()
        if name in self._by_name or any(loading.name == name for loading in self._loading):
            self._refuse(name, f"an adapter {name!r} is loaded already")
        elif self._num_slots == 0:
            self._refuse(name, "there is no room for adapters: start the server with --max-adapters")
        elif slot is None:
            still = " (those that were unloaded stay until their requests end)" if self._leaving else ""
            self._refuse(name, f"all {self._num_slots} slots for adapters are taken{still}")
        else:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")
            future = self._threads.submit(self._fill, slot, path)
            self._loading.append(_Loading(name, slot, future))
            future.add_done_callback(lambda _: self._on_loaded())

    def unload(self, name: str) -> None:
        """Takes no more requests for an adapter."""
        adapter = self._by_name.pop(name, None)
        if adapter is None:
            self._refuse(name, f"the adapter {name!r} is not loaded")
            return
        if adapter.num_requests:
            self._leaving.append(adapter)
        self._outcomes.append(AdapterOutcome(name=name))

    def take_outcomes(self) -> list[AdapterOutcome]:
        """How loading and unloading went, since the last call."""
        for loading in [loading for loading in self._loading if loading.future.done()]:
            self._loading.remove(loading)
            error = loading.future.exception()
            if error is None:
                self._enter(loading.name, loading.slot, loading.future.result())
                self._outcomes.append(AdapterOutcome(name=loading.name))
            elif isinstance(error, ValueError):
                self._refuse(loading.name, str(error))
            else:
                _log.error("adapter %s could not be loaded", loading.name, exc_info=error)
                self._refuse(loading.name, f"the engine failed to load it: {type(error).__name__}")
        outcomes = list(self._outcomes)
        self._outcomes.clear()
        return outcomes

    def _load_at_start(self, source: AdapterSource) -> None:
        slot = self._free_slot()
        try:
            if slot is None:
                raise ValueError(f"there is room for {self._num_slots} adapters; raise --max-adapters")
            contents = self._fill(slot, source.path)
        except ValueError as error:
            if source.required:
                raise ValueError(f"adapter {source.name}: {error}") from None
            _log.error("adapter %s is left out: %s", source.name, error)
            return
        self._enter(source.name, slot, contents)

    def _fill(self, slot: int, path: str) -> str:
        """Loads an adapter; returns the digest of its contents, empty if no block outlives the process. Where it is not
        known, it is a text that nobody else has."""
        if not isinstance(self._runner, AdapterRunner):
            raise ValueError("this model takes no adapters")
        if self._contents_of is None:
            self._runner.load_adapter(slot, path)
            return ""
        contents = self._contents_of(path)
        self._runner.load_adapter(slot, path)
        is_known = contents and self._contents_of(path) == contents  # nobody wrote to it meanwhile
        return contents if is_known else secrets.token_hex(16)

    def _enter(self, name: str, slot: int, contents: str) -> None:
        self._num_loaded += 1
        self._by_name[name] = LoadedAdapter(name, slot, contents or f"{self._num_loaded} {name}")

    def _refuse(self, name: str, why: str) -> None:
        self._outcomes.append(AdapterOutcome(name=name, error=why))

    def _free_slot(self) -> int | None:
        """The first slot that no adapter has, none is on its way to, and no request needs."""
        self._leaving = [adapter for adapter in self._leaving if adapter.num_requests]
        taken = {adapter.slot for adapter in (*self._by_name.values(), *self._leaving)}
        taken |= {loading.slot for loading in self._loading}
        return next((slot for slot in range(self._num_slots) if slot not in taken), None)
