"""``tuili serve`` with models that come and go: several, or one with a keep-alive time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import click

from app.duration import FOREVER
from app.keys import ApiKey
from app.serve.banner import pages_line, try_it
from app.serve.errors import StartError
from app.serve.sockets import is_loopback, local_url_of, url_of
from app.serve.stored_model import StoredModel
from app.serve.supervised import served_names
from app.serving.engine_client import EngineClient
from app.serving.memory import FixedBudget, MachineBudget
from app.serving.residency import Residency
from app.serving.resident import Resident
from app.serving.states import ModelState
from app.settings import ANY_NAME, Settings
from app.store import Store, own_name
from app.telemetry.metrics import Metrics
from app.telemetry.residents import ResidentMetrics
from app.version import __version__

KEEP_ALIVE = 300.0
"""Seconds that one of several models stays loaded without work, if the settings do not say."""


@dataclass(frozen=True, slots=True)
class _Place:
    """One of the models."""

    settings: Settings
    names: tuple[str, ...]
    metrics: Metrics
    resident: Resident


async def run_several(
    settings: Settings, models: Sequence[Settings], keys: tuple[ApiKey, ...], sock: socket.socket
) -> int:
    """Serves until a signal's drain is over; returns the exit code.

    Args:
        models: settings of each model.

    Raises:
        StartError, StoreError, ValueError: the settings cannot be served.
    """
    began = time.monotonic()
    ending = contextlib.ExitStack()
    residency = Residency(MachineBudget() if settings.model_memory is None else FixedBudget(settings.model_memory))
    places = _places(models, residency)
    preloads = [place.resident.preload() for place in places if _is_wanted(place, places[0])]
    try:
        await _engines_started(places, preloads)
        from app.serve.compose import api_settings, compose_several
        from app.serve.http import DrainingServer

        residency.opened.set()
        api = api_settings(settings, keys, on_loopback=is_loopback(sock))
        residents = [(place.names, place.resident) for place in places]
        any_name = ANY_NAME in models[0].served_model_name
        service = compose_several(settings, api, residents, residency, places[0].metrics, any_name=any_name)
        ending.callback(service.answers.close)
        server = DrainingServer(service, residency, settings)
        serving = asyncio.create_task(server.serve([sock]), name="http")
        others = [asyncio.create_task(place.resident.life.look()) for place in places]
        page = local_url_of(sock) if settings.page else None
        said = _announce(places, preloads, url_of(sock), began, needs_key=bool(keys), page=page)
        others.append(asyncio.create_task(said))
        try:
            await asyncio.wait([serving])
        finally:
            for task in others:
                task.cancel()
            server.should_exit = True
            await serving
        return 0
    finally:
        await residency.stop()
        ending.close()


def _places(models: Sequence[Settings], residency: Residency) -> list[_Place]:
    places: list[_Place] = []
    names_so_far: set[str] = set()
    for settings in models:
        names = tuple(dict.fromkeys(served_names(settings, own_name(settings.model, Store(settings.home)))))
        for name in names:
            if name in names_so_far:
                raise StartError(f"two models are served as {name!r}: give one another served_model_name, under models")
        names_so_far.update(names)
        beside = places[0].metrics if places else None
        metrics = Metrics(names[0], version=__version__, beside=beside)
        client = EngineClient(metrics)
        resident = Resident(
            names[0],
            StoredModel(settings, client, metrics),
            client,
            residency,
            ResidentMetrics(metrics),
            keep_alive=_keep_alive(settings, alone=len(models) == 1),
            max_waiting=settings.max_queue,
        )
        residency.add(resident)
        places.append(_Place(settings, names, metrics, resident))
    return places


def _keep_alive(settings: Settings, *, alone: bool) -> float:
    if settings.keep_alive is not None:
        return settings.keep_alive
    return FOREVER if alone else KEEP_ALIVE


def _is_wanted(place: _Place, first: _Place) -> bool:
    """Whether a model is loaded at the start."""
    return place is first if place.settings.preload is None else place.settings.preload


async def _engines_started(places: Sequence[_Place], preloads: Sequence[asyncio.Task[None]]) -> None:
    """Returns once an engine process runs, which loads while this one imports, or none will soon."""
    if not preloads:
        return
    begun = [asyncio.ensure_future(place.resident.life.begun.wait()) for place in places]
    await asyncio.wait([*begun, *preloads], return_when=asyncio.FIRST_COMPLETED)
    for waiting in begun:
        waiting.cancel()
    await asyncio.sleep(0)  # the process is there now


async def _announce(
    places: Sequence[_Place],
    preloads: Sequence[asyncio.Task[None]],
    url: str,
    began: float,
    *,
    needs_key: bool,
    page: str | None,
) -> None:
    """Prints the ready line once what is loaded at the start has been, or failed to be.

    Args:
        began: instant of the start.
        page: URL at which a browser finds the server's pages; None where it has none.
    """
    if preloads:
        await asyncio.wait(preloads)
    # What was loaded stays; keep the collector from walking it again and again.
    gc.freeze()
    click.echo(f"ready: {url} serves {len(places)} models after {time.monotonic() - began:.2f} s:")
    for place in places:
        life = place.resident.life
        said = f": {life.failure.reason}" if life.state is ModelState.FAILED and life.failure is not None else ""
        click.echo(f"  {', '.join(place.names)} ({life.state}{said})")
    curl = try_it(url, places[0].names[0], needs_key=needs_key)
    click.echo(f"Each is loaded when it is asked for. Try:\n  {curl}{pages_line(page)}")
