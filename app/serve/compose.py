"""Composition of the API process: what stands between HTTP and the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from app.answers.answers import Answers
from app.answers.database import AnswersError, StoreLimits
from app.api.service import ApiSettings, Service
from app.keys import ApiKey
from app.serve.banner import Phases
from app.serve.errors import StartError
from app.serve.supervised import Supervised
from app.serve.text_side import text_side
from app.serving.ledger import Ledger
from app.serving.residency import Residency
from app.serving.resident import Resident
from app.serving.served import Served, ServedModels
from app.settings import ANY_NAME, Settings
from app.store import ModelFiles
from app.telemetry.metrics import Metrics

_BODIES_AT_ONCE = 4
"""Bodies of the largest size that are under way at most; small ones do not count."""


def api_settings(settings: Settings, keys: Sequence[ApiKey] = (), *, on_loopback: bool = True) -> ApiSettings:
    """What the HTTP side is told: every setting that is named as a field of :class:`ApiSettings` is that field.

    Args:
        keys: the API keys of settings and key file.
        on_loopback: only this machine reaches the server, whose names are known then.
    """
    shared: dict[str, Any] = {
        field.name: getattr(settings, field.name) for field in fields(ApiSettings) if hasattr(settings, field.name)
    }
    made = {
        "api_keys": tuple(keys),
        "max_body_bytes_together": _BODIES_AT_ONCE * settings.max_body_bytes,
        "default_timeout": settings.request_timeout,
        "allowed_hosts": _allowed_hosts(settings, on_loopback=on_loopback),
    }
    return ApiSettings(**shared | made)


def _allowed_hosts(settings: Settings, *, on_loopback: bool) -> tuple[str, ...] | None:
    if ANY_NAME in settings.allowed_hosts:
        return None
    return (*settings.allowed_hosts, settings.host) if on_loopback else settings.allowed_hosts or None


def open_answers(settings: Settings) -> Answers:
    """Opens what keeps the answers of clients. Raises :class:`StartError`."""
    limits = StoreLimits(
        seconds=settings.response_ttl,
        bytes=settings.response_store_size,
        conversation_bytes=settings.max_body_bytes,
    )
    try:
        return Answers(settings.response_store, limits)
    except AnswersError as error:
        raise StartError(f"response_store = {settings.response_store!r} cannot be used: {error}") from None


def compose(settings: Settings, api: ApiSettings, files: ModelFiles, engine: Supervised, phases: Phases) -> Service:
    """Makes what serves the model in ``files``; to be called on the event loop. Raises :class:`StartError`."""
    with phases.timed("tokenizer"):
        generator = text_side(settings, files, engine.client, Ledger(engine.metrics))
    client = engine.client
    served = Served(engine.names, generator, client, client.progress_age, engine.supervisor.stall_limit)
    models = ServedModels([served], any_name=engine.any_name)
    return Service(models, engine.metrics, api, answers=open_answers(settings))


def compose_several(
    settings: Settings,
    api: ApiSettings,
    residents: Iterable[tuple[tuple[str, ...], Resident]],
    residency: Residency,
    metrics: Metrics,
    *,
    any_name: bool,
) -> Service:
    """Makes what serves models that come and go.

    Args:
        residents: names and resident of each model; the first is the default one.
        metrics: those of the first, whose page shows all.
        any_name: the first takes all names that no model has.

    Raises:
        StartError: what the settings say cannot be used.
    """
    served = [Served.coming_and_going(names, resident) for names, resident in residents]
    models = ServedModels(served, any_name=any_name, residency=residency)
    return Service(models, metrics, api, answers=open_answers(settings))
