"""Settings and shared objects of the HTTP side."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.answers.answers import Answers
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
    """Bytes of the largest body."""
    max_body_bytes_together: int = 64 << 20
    """Bytes of all requests' bodies at one time, small ones (64 KiB) aside; more are answered 429."""
    max_n: int = 16
    """Most choices for a prompt."""
    max_prompts: int = 256
    """Most prompts of a request; also most choices of all its prompts together."""
    max_logprobs: int = 20
    """Most alternatives for a token."""
    max_stop: int = 16
    """Most stop strings of a request, and most stop token ids."""
    keepalive_interval: float = 15.0
    """Seconds of silence before a stream gets a comment line; 0 sends none."""
    default_timeout: float | None = 600.0
    """Seconds after which a request is given up."""
    api_keys: tuple[ApiKey, ...] = ()
    """Keys of which every request but a probe must bring one; none are needed when there are none."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read answers in a browser."""
    allowed_hosts: tuple[str, ...] | None = None
    """Names by which clients may call a server without keys (:class:`OriginMiddleware`); None for any."""
    page: bool = True
    """Show browsers a chat at ``/`` and the API's page at ``/docs``."""


@dataclass(slots=True)
class Service:
    """What is served, and how: all that the routes share."""

    models: ServedModels
    metrics: Metrics
    settings: ApiSettings = field(default_factory=ApiSettings)
    live: LiveRequests = field(default_factory=LiveRequests)
    answers: Answers = field(default_factory=Answers)
    """Answers that clients may come back to."""
    draining: bool = False
    """Readiness answers 503 while requests are still taken: set it, let balancers notice, then drain the models."""
