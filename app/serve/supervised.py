"""The engine's side of the API process: its client and its supervisor.

Without the web framework and the text side, so that the engine process, whose start takes longest, runs before those
are imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from app.serve.banner import Phases
from app.serve.engine import engine_command, engine_config
from app.serving.engine_client import EngineClient
from app.serving.supervisor import RestartPolicy, Supervisor
from app.settings import ANY_NAME, Settings
from app.store import ModelFiles
from app.telemetry.metrics import Metrics
from app.version import __version__


@dataclass(frozen=True, slots=True)
class Supervised:
    """An engine from outside, wired; nothing runs yet."""

    names: tuple[str, ...]
    """Names by which requests ask for its model."""
    any_name: bool
    """Requests may use any other name as well."""
    metrics: Metrics
    client: EngineClient
    supervisor: Supervisor
    gave_up: asyncio.Event
    """Set when there will be no engine any more."""


def served_names(settings: Settings, own: str) -> tuple[str, ...]:
    """Names by which requests ask for a model whose own name is ``own``, if none is set."""
    return tuple(name for name in settings.served_model_name if name != ANY_NAME) or (own,)


def supervised_engine(settings: Settings, files: ModelFiles, phases: Phases) -> Supervised:
    """Client and supervisor of an engine that runs the model in ``files``; to be called on the event loop."""
    names = served_names(settings, files.name)
    metrics = Metrics(names[0], version=__version__)
    client = EngineClient(metrics, on_progress=phases.engine_progress)
    gave_up = asyncio.Event()
    supervisor = new_supervisor(settings, files, client, metrics, lambda _: gave_up.set())
    any_name = ANY_NAME in settings.served_model_name
    return Supervised(names, any_name, metrics, client, supervisor, gave_up)


def new_supervisor(
    settings: Settings, files: ModelFiles, client: EngineClient, metrics: Metrics, on_give_up: Callable[[str], None]
) -> Supervisor:
    """The supervisor of an engine that runs the model in ``files``; it has not been started."""
    return Supervisor(
        client,
        engine_config(settings, files.directory, files.weights, files.eos_token_ids),
        engine_command(settings),
        metrics=metrics,
        on_give_up=on_give_up,
        policy=RestartPolicy(stall_timeout=settings.stall_timeout),
    )
