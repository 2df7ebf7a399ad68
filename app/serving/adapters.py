"""Adapters of one model that requests may ask for: which there are, and how they come and go while it is served.

An engine that is started again loads them anew; one that is gone from the disk by then is left out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import msgspec
import structlog

from app.contract.config import ADAPTER_NAME, AdapterSource, EngineConfig
from app.contract.frames import AdapterOutcome, ClientFrame, LoadAdapter, UnloadAdapter
from app.errors import RequestError

_log = structlog.get_logger("tuili.adapters")
_LONGEST_NAME = 128
_LOST = "The engine stopped before it answered."


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that the engine was asked for."""

    answer: asyncio.Future[AdapterOutcome]
    when_done: Callable[[], None]
    when_lost: Callable[[], None]


class ServedAdapters:
    """The adapters of one engine, by name.

    Args:
        send: queues a frame for the engine.
    """

    def __init__(self, send: Callable[[ClientFrame], None]) -> None:
        self._send = send
        self._sources: dict[str, AdapterSource] = {}
        self._changes: dict[str, _Change] = {}
        """Changes that the engine has not answered, by the adapter's name."""

    def __contains__(self, name: str) -> bool:
        """Whether requests may ask for an adapter of that name."""
        return name in self._sources

    @property
    def names(self) -> Collection[str]:
        """Names that requests may ask for."""
        return self._sources.keys()

    def begin(self, sources: Iterable[AdapterSource]) -> None:
        """Notes what the first engine is started with."""
        self._sources = {source.name: source for source in sources}

    def config(self, config: EngineConfig) -> EngineConfig:
        """The configuration of an engine that is started now."""
        return msgspec.structs.replace(config, adapters=tuple(self._sources.values()))

    async def load(self, name: str, path: str) -> None:
        """Has the engine load an adapter, beside the requests that it works on.

        Args:
            path: its directory, absolute.

        Raises:
            RequestError: 400, it cannot be served; 409, there is one of that name, or it is on its way; 503, there is
                no engine any more.
        """
        if not re.fullmatch(ADAPTER_NAME, name):
            message = "A name has up to 128 letters, digits and any of . _ - / : @ +, a letter or digit first."
            raise RequestError(message, code="invalid_value", param="lora_name")
        if name in self._sources:
            raise RequestError(f"The adapter {name!r} is loaded already.", status=409, code="adapter_exists")
        loaded = {name: AdapterSource(name, path, required=False)}
        await self._change(LoadAdapter(name, path), when_done=lambda: self._sources.update(loaded))
        _log.info("adapter loaded", adapter=name)

    async def unload(self, name: str) -> None:
        """Takes no more requests for an adapter; those that are under way end as they would.

        Raises:
            RequestError: 404, there is none of that name; 503, there is no engine any more.
        """
        source = self._sources.pop(name, None)
        if source is None:
            message = f"The adapter {name[:_LONGEST_NAME]!r} is not loaded."
            raise RequestError(message, status=404, code="adapter_not_found")
        kept = {name: source}
        await self._change(UnloadAdapter(name), when_lost=lambda: self._sources.update(kept))
        _log.info("adapter unloaded", adapter=name)

    async def _change(
        self,
        frame: LoadAdapter | UnloadAdapter,
        *,
        when_done: Callable[[], None] = lambda: None,
        when_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Sends a change and waits for the engine's answer; what follows from it does not hang on who waits."""
        if frame.name in self._changes:
            message = f"The adapter {frame.name!r} is being loaded or unloaded."
            raise RequestError(message, status=409, code="adapter_busy")
        answer: asyncio.Future[AdapterOutcome] = asyncio.get_running_loop().create_future()
        self._changes[frame.name] = _Change(answer, when_done, when_lost)
        self._send(frame)
        outcome = await answer
        if outcome.error is not None:
            raise RequestError(f"The adapter {frame.name!r}: {outcome.error}.", code="adapter_refused")

    def settle(self, outcome: AdapterOutcome) -> None:
        """Takes the engine's answer."""
        change = self._changes.pop(outcome.name, None)
        if change is None:
            return
        if outcome.error is None:
            change.when_done()
        if not change.answer.done():
            change.answer.set_result(outcome)

    def note_ready(self, loaded: Collection[str]) -> None:
        """Notes what an engine that has started could load."""
        for name in [name for name in self._sources if name not in loaded]:
            _log.error("adapter is gone", adapter=name, path=self._sources.pop(name).path)

    def lose(self) -> None:
        """There is no engine any more that would answer."""
        for change in self._changes.values():
            change.when_lost()
            if not change.answer.done():
                error = RequestError(_LOST, status=503, type="server_error", code="engine_restarted", retry_after=1.0)
                change.answer.set_exception(error)
        self._changes.clear()
