"""Composition of the API process: which parts a server is made of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from typing import Any

from app.api.service import ApiSettings, Service
from app.keys import distinct, read_key_file
from app.serve.banner import Phases
from app.serve.engine import ENGINE_COMMAND, engine_config
from app.serving.engine_client import EngineClient
from app.serving.generation import Generator
from app.serving.ledger import Ledger
from app.serving.served import Served, ServedModels
from app.serving.supervisor import RestartPolicy, Supervisor
from app.settings import Settings
from app.store import ModelFiles
from app.telemetry.metrics import Metrics
from app.version import __version__

_BODIES_AT_ONCE = 4
"""Bodies of the largest size that are under way at most; small ones do not count."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a server, wired; nothing runs yet."""

    service: Service
    served: Served
    """The one model."""
    supervisor: Supervisor
    gave_up: asyncio.Event
    """Set when there will be no engine any more."""


def api_settings(settings: Settings) -> ApiSettings:
    """What the HTTP side is told: every setting that is named as a field of :class:`ApiSettings` is that field.

    Raises:
        KeyFormatError: the key file cannot be used.
    """
    shared: dict[str, Any] = {
        field.name: getattr(settings, field.name) for field in fields(ApiSettings) if hasattr(settings, field.name)
    }
    in_file = read_key_file(settings.api_key_file) if settings.api_key_file else ()
    shared["api_keys"] = distinct([*settings.api_keys, *in_file])
    return ApiSettings(
        **shared,
        max_body_bytes_together=_BODIES_AT_ONCE * settings.max_body_bytes,
        default_timeout=settings.request_timeout,
    )


def compose(settings: Settings, api: ApiSettings, files: ModelFiles, phases: Phases) -> Parts:
    """Makes the parts that serve the model in ``files``; to be called on the event loop."""
    names = settings.served_model_name or (files.name,)
    metrics = Metrics(names[0], version=__version__)
    client = EngineClient(metrics, on_progress=phases.engine_progress)
    with phases.timed("tokenizer"):
        generator = Generator.for_model(
            files,
            client,
            Ledger(metrics),
            max_num_seqs=settings.max_num_seqs,
            max_queue=settings.max_queue,
        )
    gave_up = asyncio.Event()
    supervisor = Supervisor(
        client,
        engine_config(settings, files.directory, files.weights, files.eos_token_ids),
        ENGINE_COMMAND,
        metrics=metrics,
        on_give_up=lambda _: gave_up.set(),
        policy=RestartPolicy(stall_timeout=settings.stall_timeout),
    )
    served = Served(tuple(names), generator, client, client.progress_age, supervisor.stall_limit)
    return Parts(Service(ServedModels([served]), metrics, api), served, supervisor, gave_up)
