"""What the HTTP side is given to work with."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app.keys import ApiKey
from app.serving.engine_client import EngineClient
from app.serving.errors import RequestError
from app.serving.generation import Generator
from app.serving.live_requests import LiveRequests
from app.telemetry.metrics import Metrics
from app.types import EngineReady
from app.version import __version__


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Limits and habits of the HTTP side. A request that exceeds a limit gets a 400 that names it (413 for bodies)."""

    strict_params: bool = False
    """Refuse request fields nobody knows, as ``?strict=true`` does, instead of naming them back."""
    max_body_bytes: int = 16 << 20
    max_body_bytes_together: int = 64 << 20
    """Bytes of all requests' bodies at one time, small ones (64 KiB) aside; more are answered 429."""
    max_n: int = 16
    """Choices a prompt."""
    max_prompts: int = 256
    """Prompts a request; also choices of all its prompts together."""
    max_logprobs: int = 20
    """Alternatives a token."""
    max_stop: int = 16
    """Stop strings, and likewise stop token ids."""
    keepalive_interval: float = 15.0
    """Seconds of silence before a stream gets a comment line; 0 sends none."""
    default_timeout: float | None = 600.0
    """Seconds after which a request is given up."""
    api_keys: tuple[ApiKey, ...] = ()
    """Once there is one, everything but the probes needs one."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages may read answers in a browser."""


@dataclass(slots=True)
class Service:
    """One served model, as the routes see it."""

    generator: Generator
    client: EngineClient
    metrics: Metrics
    progress_age: Callable[[], float]
    """Seconds for which the engine had work and showed no progress."""
    stall_limit: Callable[[], float]
    """Seconds of that after which the supervisor starts the engine again; 0: it never does."""
    settings: ApiSettings = field(default_factory=ApiSettings)
    live: LiveRequests = field(default_factory=LiveRequests)
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time shown by ``/v1/models``."""
    draining: bool = False
    """Readiness answers 503 while requests are still taken: set it, let balancers notice, then drain the client."""

    def engine(self) -> EngineReady:
        """What the engine is. Raises :class:`RequestError` 503 before its first start."""
        if self.client.ready is None:
            raise self.client.unavailable() or RequestError("The model is not available.", status=503)
        return self.client.ready

    def model_name(self, asked: str | None) -> str:
        """The name that an answer carries. Raises :class:`RequestError` 404 for a model that is not served."""
        names = self.generator.model_names
        if asked is None:
            return names[0]
        if asked not in names:
            message = f"The model {asked[:128]!r} is not served here; these are: {', '.join(names)}."
            raise RequestError(message, status=404, code="model_not_found", param="model")
        return asked

    def fingerprint(self) -> str:
        """Changes when the same request may be answered otherwise: another model, precision, device or version."""
        engine = self.engine()
        parts = (__version__, self.generator.model_names[0], engine.num_parameters, engine.dtype, engine.kv_cache_dtype)
        text = "|".join(map(str, (*parts, engine.device, engine.quantization, engine.kernels)))
        return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:10]}"
