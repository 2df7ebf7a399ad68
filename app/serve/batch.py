"""``tuili batch`` without a server: the model is loaded here, and the rows go to the application without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
from rich.console import Console

from app.batch.errors import BatchError
from app.batch.run import DONE, FAILED, INTERRUPTED, Batch, Options, answer, conclude, tell
from app.serve.banner import Phases
from app.serve.start import model_files
from app.serve.supervised import Supervised, supervised_engine
from app.serving.engine_client import EngineFailedError
from app.settings import Settings
from app.store import ModelFiles, StoreError
from app.telemetry.logs import configure_logging

_ROOT = "http://127.0.0.1"


def run_here(options: Options, settings: Settings, sources: Mapping[str, str]) -> int:
    """Runs a batch on a model of this process.

    Args:
        sources: where each setting comes from.

    Returns:
        The exit code.
    """
    console = Console(stderr=True)
    # A line for each request is what the file of results is.
    configure_logging("warning" if sources["log_level"] == "default" else settings.log_level, settings.log_format)
    phases = Phases(lambda line: tell(console, line) if console.is_terminal else None, console)
    try:
        with Batch(options) as batch:
            code = DONE
            if not batch.is_done:
                files = model_files(settings, phases)
                code = asyncio.run(_run(batch, settings, files, phases, console))
            return conclude(batch, code, console)
    except (BatchError, StoreError, EngineFailedError, ValueError) as e:
        tell(console, f"tuili: error: {e}")
        return FAILED
    except KeyboardInterrupt:  # while the model was loading
        return INTERRUPTED


async def _run(batch: Batch, settings: Settings, files: ModelFiles, phases: Phases, console: Console) -> int:
    engine = supervised_engine(settings, files, phases)
    engine.supervisor.start()
    try:
        await asyncio.sleep(0)  # the process is there now, and loads while this one imports
        from app.api.app import create_app
        from app.serve.compose import api_settings, compose

        app = create_app(compose(settings, api_settings(settings), files, engine, phases))
        stop = asyncio.Event()
        failing = asyncio.create_task(_stop_with(engine, stop), name="give-up")
        try:
            await engine.client.wait_ready()
            phases.end()
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, timeout=None) as http:  # noqa: S113 - tries have bounds
                code = await answer(batch, http, _ROOT, console, stop=stop)
        finally:
            failing.cancel()
        if engine.gave_up.is_set():
            raise EngineFailedError(engine.client.readiness()[1])
        return code
    finally:
        await engine.supervisor.stop()


async def _stop_with(engine: Supervised, stop: asyncio.Event) -> None:
    """Ends the run with the engine: the rows that it has not answered are the next run's."""
    await engine.gave_up.wait()
    stop.set()
