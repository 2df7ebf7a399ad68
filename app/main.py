"""Composition root of the API process: wires store, text side, engine supervisor and HTTP, and runs them.

Start-up binds the port before anything slow happens, answers probes while the engine loads, prints each phase with its
time and, when the model answers, one ready line with a curl to try. Machine-readable logs go to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import json
import math
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import click
import uvicorn

from app.api.app import create_app
from app.api.protocol import HttpProtocol
from app.api.service import ApiSettings, Service
from app.keys import distinct, read_key_file
from app.serving.engine_client import EngineClient, EngineFailedError
from app.serving.generation import Generator
from app.serving.ledger import Ledger
from app.serving.supervisor import RestartPolicy, Supervisor
from app.settings import Settings
from app.store import ModelFiles, Store, StoreError, TerminalProgress, pull, resolve
from app.telemetry.logs import configure_logging
from app.telemetry.metrics import Metrics
from app.types import EngineConfig, EngineReady, LoadProgress
from app.version import __version__

# The engine imports from where this process does. -m would look in the working directory first, and a user who starts
# the server in a project of their own may well have a package named app there.
_ENGINE_ENTRY = f"""import sys
sys.path[:] = {sys.path!r}
from app.parent import end_with_parent
end_with_parent()
from app.worker import main
sys.exit(main(*map(int, sys.argv[1:])))"""
ENGINE_COMMAND = (sys.executable, "-P", "-c", _ENGINE_ENTRY)
EXIT_OK, EXIT_FAILURE = 0, 1
_PROGRESS_INTERVAL = 2.0
_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the clients and proxies that reuse it keep it (60 at most of
them), or a request now and then meets its closing."""
_BODIES_AT_ONCE = 4
"""Bodies of the largest size that are under way at most; small ones do not count."""
_LAST_EVENTS = 5.0
"""Seconds that streams cut by the drain's deadline get to send their error event."""


class StartError(Exception):
    """The server cannot start; one line a person can act on."""


def serve(settings: Settings) -> int:
    """Serves until told to stop; returns the exit code."""
    configure_logging(settings.log_level, settings.log_format)
    # Until the HTTP server takes signals over. As a container's first process, it would not be ended by default.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    phases = _Phases()
    try:
        api = api_settings(settings)
        with listen(settings.host, settings.port) as sock:
            if not (api.api_keys or settings.insecure or _is_loopback(sock)):
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


class _Phases:
    """Prints what start-up does and how long each part took; a part that takes long also says how far it is."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._phase = ""
        self._phase_started = self._last_print = self.started

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """A part that this process does itself."""
        self._begin(phase)
        yield
        self.end()

    def engine_progress(self, progress: LoadProgress) -> None:
        """Called for every step of the engine's load."""
        if progress.phase != self._phase:
            self.end()
            self._begin(progress.phase)
        elif progress.total and time.monotonic() - self._last_print >= _PROGRESS_INTERVAL:
            self._print(f"{progress.phase:<12}{100 * progress.done // progress.total:7} %")

    def end(self) -> None:
        """The present part is done."""
        if self._phase:
            self._print(f"{self._phase:<12}{time.monotonic() - self._phase_started:7.2f} s")
            self._phase = ""

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self._phase_started = self._last_print = time.monotonic()

    def _print(self, line: str) -> None:
        click.echo(f"  {line}")
        self._last_print = time.monotonic()


def listen(host: str, port: int) -> socket.socket:
    """Binds before the model loads: a taken port should cost nobody a minute."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delays off for sockets that name their protocol; accepted ones inherit it.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
    except (OSError, TypeError) as e:  # TypeError: a name that cannot be a host's
        sock.close()
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise StartError(f"cannot listen on {host}:{port}: {reason}") from None
    sock.set_inheritable(False)
    return sock


def _is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine reaches a bound socket; asked of the socket, because a host may be a name."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def _model_files(settings: Settings, phases: _Phases) -> ModelFiles:
    store = Store(settings.home)
    with phases.timed("model"):
        if settings.load_format == "dummy":
            return resolve(settings.model, store, need_weights=False)
        return pull(settings.model, store, TerminalProgress())


def engine_config(
    settings: Settings, directory: Path, weights: Sequence[Path] = (), eos_token_ids: Sequence[int] = ()
) -> EngineConfig:
    """What the engine process is told of a model in ``directory``."""
    return EngineConfig(
        model_dir=str(directory),
        weights=tuple(str(path) for path in weights),
        load_format=settings.load_format,
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        kv_cache_dtype=settings.kv_cache_dtype,
        kernels=settings.kernels,
        packed_cache=str(Store(settings.home).packed),
        kv_cache_memory=None if settings.kv_cache_memory is None else int(settings.kv_cache_memory),
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_logit_rows=settings.max_logit_rows,
        enable_prefix_caching=settings.enable_prefix_caching,
        pipeline_depth=settings.pipeline_depth,
        enforce_eager=settings.enforce_eager,
        trace_step=settings.trace_step,
        tensor_parallel_size=settings.tensor_parallel_size,
        threads=settings.threads,
        integrity_checks=settings.integrity_checks,
        seed=settings.seed,
        eos_token_ids=tuple(eos_token_ids),
    )


def api_settings(settings: Settings) -> ApiSettings:
    """What the HTTP side is told. Raises :class:`KeyFormatError` for a key file that cannot be used."""
    in_file = read_key_file(settings.api_key_file) if settings.api_key_file else ()
    return ApiSettings(
        strict_params=settings.strict_params,
        max_body_bytes=int(settings.max_body_bytes),
        max_body_bytes_together=_BODIES_AT_ONCE * int(settings.max_body_bytes),
        max_n=settings.max_n,
        max_prompts=settings.max_prompts,
        max_logprobs=settings.max_logprobs,
        max_stop=settings.max_stop,
        keepalive_interval=settings.keepalive_interval,
        default_timeout=settings.request_timeout,
        api_keys=distinct([*settings.api_keys, *in_file]),
        cors_origins=settings.cors_origins,
    )


class _Server(uvicorn.Server):
    """uvicorn that drains: readiness turns 503 first, the listener closes later, streams get time to finish.

    Streams that outlast ``drain_timeout`` lose the engine, so that each ends with an error event instead of a cut.
    """

    def __init__(self, config: uvicorn.Config, service: Service, supervisor: Supervisor, settings: Settings) -> None:
        super().__init__(config)
        self._service = service
        self._supervisor = supervisor
        self._drain_delay = settings.drain_delay
        self._drain_timeout = settings.drain_timeout
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal's drain is over."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._drain is not None:
            self._drain.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begins to drain; uvicorn's own handler would end the process by the signal instead of exit code 0."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_signal, sig)

    def _on_signal(self, sig: int) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_then_exit(), name="drain")
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True  # a second Ctrl-C means now

    async def _drain_then_exit(self) -> None:
        self._service.draining = True
        await asyncio.sleep(self._drain_delay)
        self._service.client.drain()
        self.should_exit = True
        await asyncio.sleep(self._drain_timeout)
        await self._supervisor.stop()


async def _run(settings: Settings, api: ApiSettings, sock: socket.socket, files: ModelFiles, phases: _Phases) -> int:
    names = settings.served_model_name or (files.name,)
    metrics = Metrics(names[0], version=__version__)
    client = EngineClient(metrics, on_progress=phases.engine_progress)
    with phases.timed("tokenizer"):
        generator = Generator.for_model(
            files,
            client,
            Ledger(metrics),
            model_names=names,
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
    service = Service(generator, client, metrics, client.progress_age, supervisor.stall_limit, api)
    server = _Server(uvicorn_config(service, settings), service, supervisor, settings)
    serving = asyncio.create_task(server.serve([sock]), name="http")
    supervisor.start()
    try:
        return await _until_done(serving, server, client, gave_up, _url(sock), names[0], bool(api.api_keys), phases)
    finally:
        await supervisor.stop()


async def _until_done(
    serving: asyncio.Task[None],
    server: _Server,
    client: EngineClient,
    gave_up: asyncio.Event,
    url: str,
    model: str,
    needs_key: bool,
    phases: _Phases,
) -> int:
    """Announces readiness, then waits for a signal's drain or for the supervisor to give up."""
    failed = asyncio.create_task(gave_up.wait(), name="give-up")
    ready = asyncio.create_task(client.wait_ready(), name="ready")
    try:
        await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            # What was loaded stays; keep the collector from walking it again and again.
            gc.freeze()
            phases.end()
            click.echo(_ready_line(url, model, needs_key, ready.result(), time.monotonic() - phases.started))
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


def uvicorn_config(service: Service, settings: Settings) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        create_app(service),
        http=HttpProtocol,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        log_config=None,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout + _LAST_EVENTS),
        lifespan="off",
        server_header=False,
    )


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _formats(engine: EngineReady) -> str:
    weights = engine.dtype if engine.quantization == "none" else engine.quantization
    return f"{weights} weights, {engine.dtype} activations, {engine.kv_cache_dtype} KV cache, {engine.kernels} kernels"


def _ready_line(url: str, model: str, needs_key: bool, engine: EngineReady, seconds: float) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    # The shell puts the key in: it must not end up in a log.
    key = ' -H "Authorization: Bearer $TUILI_API_KEY"' if needs_key else ""
    return (
        f"ready: {url} serves {model} ({_formats(engine)}) after {seconds:.2f} s. Try:\n"
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
