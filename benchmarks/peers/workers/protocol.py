"""How a worker is asked: one JSON line in, one JSON line out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Times = list[list[float]]
"""Instants of ``time.perf_counter()``, one for each token of each prompt."""
Generate = Callable[[list[list[int]], int, int, int], tuple[list[float], Times]]
"""``generate(prompts, max_tokens, concurrency, prefix)`` -> start of each request, and times of its tokens.

``prefix`` is how many tokens all prompts are known to begin with: an engine without a prefix cache of its own may use
it. Everything is greedy; an end-of-text token does not end an answer.
"""


def serve(load: Callable[[], tuple[str, Generate]]) -> None:
    """Answers requests until standard input closes.

    Args:
        load: makes the engine; returns its version and the function that asks it.
    """
    # What the engine's libraries print must not come between the answers.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    version, generate = load()
    _write(out, {"version": version})
    for line in sys.stdin:
        request = json.loads(line)
        started, times = generate(request["prompts"], request["max_tokens"], request["concurrency"], request["prefix"])
        _write(out, {"started": started, "times": times})


def _write(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()
