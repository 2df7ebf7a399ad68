"""``tuili serve``: from settings to a server that answers, until it is told to stop.

Start-up binds the port before anything slow happens and answers probes while the engine loads. People read stdout
(see ``banner.py``), machines the logs on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from typing import TYPE_CHECKING

import click
from rich.console import Console

from app.keys import ApiKey, distinct, read_key_file
from app.per_model import come_and_go, per_model
from app.serve.banner import Banner, Phases
from app.serve.errors import StartError
from app.serve.sockets import is_loopback, listen, local_url_of, url_of
from app.serve.supervised import Supervised, supervised_engine
from app.serving.engine_client import EngineFailedError
from app.settings import Settings, SettingsError
from app.store import ModelFiles, Store, StoreError, TerminalProgress, at_revision, pull, resolve
from app.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from app.serve.http import DrainingServer

EXIT_OK, EXIT_FAILURE = 0, 1


def serve(settings: Settings) -> int:
    """Serves until told to stop; returns the exit code."""
    configure_logging(settings.log_level, settings.log_format)
    # Until the HTTP server takes signals over. As a container's first process, it would not be ended by default.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    phases = Phases(console=Console(stderr=True))
    try:
        keys = _api_keys(settings)
        with listen(settings.host, settings.port) as sock:
            if not (keys or settings.insecure or is_loopback(sock)):
                raise StartError(
                    f"{settings.host} can be reached from other machines and no API key is set: set TUILI_API_KEYS or "
                    "--api-key-file (tuili keys new makes a key), or say --insecure"
                )
            models = per_model(settings)
            if come_and_go(settings):
                from app.serve.several import run_several  # the start of a single model does without

                return asyncio.run(run_several(settings, models, keys, sock))
            files = model_files(models[0], phases)
            return asyncio.run(_run(models[0], keys, sock, files, phases))
    except (SettingsError, StartError, StoreError, EngineFailedError, ValueError) as e:
        click.echo(f"tuili: error: {e}", err=True)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_OK


def model_files(settings: Settings, phases: Phases) -> ModelFiles:
    """The files of the model that is set, fetched if they are not there yet. Raises :class:`StoreError`."""
    store, name = Store(settings.home), at_revision(settings.model, settings.revision)
    with phases.timed("model"):
        if settings.load_format == "dummy":
            return resolve(name, store, need_weights=False, via=settings.via)
        return pull(name, store, TerminalProgress(), via=settings.via)


def _api_keys(settings: Settings) -> tuple[ApiKey, ...]:
    """Raises:
    KeyFormatError: the key file cannot be used.
    """
    in_file = read_key_file(settings.api_key_file) if settings.api_key_file else ()
    return distinct([*settings.api_keys, *in_file])


async def _run(
    settings: Settings, keys: tuple[ApiKey, ...], sock: socket.socket, files: ModelFiles, phases: Phases
) -> int:
    engine = supervised_engine(settings, files, phases)
    engine.supervisor.start()
    ending = contextlib.ExitStack()
    try:
        await asyncio.sleep(0)  # the process is there now, and loads while this one imports
        from app.serve.compose import api_settings, compose
        from app.serve.http import DrainingServer

        api = api_settings(settings, keys, on_loopback=is_loopback(sock))
        service = compose(settings, api, files, engine, phases)
        ending.callback(service.answers.close)
        server = DrainingServer(service, engine.supervisor, settings)
        generator = service.models.default.generator
        banner = Banner(
            url_of(sock),
            engine.names[0],
            needs_key=bool(keys),
            sampling=generator.default_params,
            is_recommended=generator.has_recommendation,
            page=local_url_of(sock) if settings.page else None,
        )
        serving = asyncio.create_task(server.serve([sock]), name="http")
        return await _until_done(serving, server, engine, banner, phases)
    finally:
        await engine.supervisor.stop()
        ending.close()


async def _until_done(
    serving: asyncio.Task[None], server: DrainingServer, engine: Supervised, banner: Banner, phases: Phases
) -> int:
    """Announces readiness, then waits for a signal's drain or for the supervisor to give up."""
    client = engine.client
    failed = asyncio.create_task(engine.gave_up.wait(), name="give-up")
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
