"""How the parts are wired."""

from __future__ import annotations

from app.api.protocol import HttpProtocol
from app.api.service import Service
from app.main import api_settings, uvicorn_config
from app.settings import Settings
from tests.serving.rig import make_rig

LONGEST_REUSE = 60
"""Seconds for which common proxies and clients keep an idle connection to a server."""


def test_the_server_is_not_the_first_to_close_an_idle_connection() -> None:
    rig, settings = make_rig(), Settings.model_validate({})
    service = Service(rig.generator, rig.client, rig.metrics, rig.client.progress_age, api_settings(settings))
    config = uvicorn_config(service, settings)
    assert config.timeout_keep_alive > LONGEST_REUSE
    assert config.http is HttpProtocol
