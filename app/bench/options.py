"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


class BenchError(Exception):
    """The run cannot be made; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A run against one server."""

    url: str = "http://127.0.0.1:8000"
    endpoint: Literal["completions", "chat"] = "completions"
    model: str | None = None
    """Name of the model; the first that the server lists when absent."""
    api_key: str | None = field(default=None, repr=False)

    concurrency: int | None = None
    """Closed loop: requests under way at once."""
    request_rate: float | None = None
    """Open loop: requests a second, whether or not earlier ones are answered."""
    burstiness: float = 1.0
    """Shape of the gamma distribution of the gaps: 1 is Poisson, less is burstier."""
    num_prompts: int | None = None
    duration: float | None = None
    """Seconds after which no request starts."""
    warmup: int = 2
    timeout: float = 600.0
    """Seconds a request may take."""

    prompts: Path | None = None
    """Path of a JSONL file with ``prompt`` and perhaps ``max_tokens``; synthetic prompts when absent."""
    prompt_type: Literal["words", "ids"] = "words"
    input_len: tuple[int, ...] = (128,)
    output_len: tuple[int, ...] = (128,)
    prefix_len: int = 0
    id_range: tuple[int, int] = (1000, 30000)
    """Token ids that synthetic prompts are made of: first, and one past the last."""

    temperature: float = 0.0
    ignore_eos: bool | None = None
    """Let answers go on to ``max_tokens``. When absent, only those to synthetic prompts."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    """Seed of prompts, arrivals and sampling. Drawn anew when absent, so that no cache knows the prompts."""

    goodput: dict[str, float] = field(default_factory=dict)
    """Measure -> milliseconds that a good request stays within."""
    output: Path | None = None
    requests_output: Path | None = None
    plot: Path | None = None
