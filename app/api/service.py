"""What the HTTP side is given to work with."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.keys import ApiKey
from app.serving.live_requests import LiveRequests
from app.serving.served import ServedModels
from app.telemetry.metrics import Metrics


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
    """What is served, and how: all that the routes share."""

    models: ServedModels
    metrics: Metrics
    settings: ApiSettings = field(default_factory=ApiSettings)
    live: LiveRequests = field(default_factory=LiveRequests)
    draining: bool = False
    """Readiness answers 503 while requests are still taken: set it, let balancers notice, then drain the models."""
