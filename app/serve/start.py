"""``tuili serve``: from settings to a server that answers, until it is told to stop.

Start-up binds the port before anything slow happens and answers probes while the engine loads. People read stdout
(see ``banner.py``), machines the logs on stderr.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket

import click

from app.api.service import ApiSettings
from app.serve.banner import Banner, Phases
from app.serve.compose import Parts, api_settings, compose
from app.serve.errors import StartError
from app.serve.http import DrainingServer
from app.serve.sockets import is_loopback, listen, url_of
from app.serving.engine_client import EngineFailedError
from app.settings import Settings
from app.store import ModelFiles, Store, StoreError, TerminalProgress, pull, resolve
from app.telemetry.logs import configure_logging

EXIT_OK, EXIT_FAILURE = 0, 1


def serve(settings: Settings) -> int:
    """Serves until told to stop; returns the exit code."""
    configure_logging(settings.log_level, settings.log_format)
    # Until the HTTP server takes signals over. As a container's first process, it would not be ended by default.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    phases = Phases()
    try:
        api = api_settings(settings)
        with listen(settings.host, settings.port) as sock:
            if not (api.api_keys or settings.insecure or is_loopback(sock)):
                raise StartError(
                    f"{settings.host} can be reached from other machines and no API key is set: set TUILI_API_KEYS or "
                    "--api-key-file (tuili keys new makes a key), or say --insecure"
                )
            files = _model_files(settings, phases)
            return asyncio.run(_run(settings, api, sock, files, phases))
    except (StartError, StoreError, EngineFailedError, ValueError) as e:
        click.echo(f"tuili: error: {e}", err=True)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_OK


def _model_files(settings: Settings, phases: Phases) -> ModelFiles:
    store = Store(settings.home)
    with phases.timed("model"):
        if settings.load_format == "dummy":
            return resolve(settings.model, store, need_weights=False)
        return pull(settings.model, store, TerminalProgress())


async def _run(settings: Settings, api: ApiSettings, sock: socket.socket, files: ModelFiles, phases: Phases) -> int:
    parts = compose(settings, api, files, phases)
    server = DrainingServer(parts.service, parts.supervisor, settings)
    banner = Banner(url_of(sock), parts.served.name, needs_key=bool(api.api_keys))
    serving = asyncio.create_task(server.serve([sock]), name="http")
    parts.supervisor.start()
    try:
        return await _until_done(serving, server, parts, banner, phases)
    finally:
        await parts.supervisor.stop()


async def _until_done(
    serving: asyncio.Task[None], server: DrainingServer, parts: Parts, banner: Banner, phases: Phases
) -> int:
    """Announces readiness, then waits for a signal's drain or for the supervisor to give up."""
    client = parts.served.client
    failed = asyncio.create_task(parts.gave_up.wait(), name="give-up")
    ready = asyncio.create_task(client.wait_ready(), name="ready")
    try:
        await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            # What was loaded stays; keep the collector from walking it again and again.
            gc.freeze()
            phases.end()
            click.echo(banner.ready_line(ready.result().info, phases.seconds))
        await asyncio.wait([serving, failed], return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            _, reason = client.readiness()
            raise EngineFailedError(reason)
        return EXIT_OK
    finally:
        failed.cancel()
        ready.cancel()
        server.should_exit = True
        await serving
