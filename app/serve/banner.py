"""What a start prints for people: each phase with its time, then one ready line with a curl to try."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import click
from rich.console import Console

from app.contract.frames import LoadProgress
from app.contract.info import RunnerInfo
from app.serve.loading_bar import LoadingBar, progress_line

_PROGRESS_INTERVAL = 2.0


class Phases:
    """Prints what start-up does and how long each part took; a part that takes long also says how far it is.

    Args:
        show: prints a line.
        console: where a bar is drawn while a part takes long, if it is a terminal; None: nowhere.
    """

    def __init__(self, show: Callable[[str], object] = click.echo, console: Console | None = None) -> None:
        self._show = show
        self._bar = LoadingBar(console) if console is not None and console.is_terminal else None
        self._started = time.monotonic()
        self._phase = ""
        self._phase_started = self._last_print = self._started

    @property
    def seconds(self) -> float:
        """Seconds since the first phase could begin."""
        return time.monotonic() - self._started

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
        elif progress.total and self._bar is not None:
            self._bar.show(progress)
        elif progress.total and time.monotonic() - self._last_print >= _PROGRESS_INTERVAL:
            self._print(progress_line(progress))

    def end(self) -> None:
        """Prints that the present part is done."""
        if self._bar is not None:
            self._bar.end()
        if self._phase:
            self._print(f"{self._phase:<12}{time.monotonic() - self._phase_started:7.2f} s")
            self._phase = ""

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self._phase_started = self._last_print = time.monotonic()

    def _print(self, line: str) -> None:
        self._show(f"  {line}")
        self._last_print = time.monotonic()


@dataclass(frozen=True, slots=True)
class Banner:
    """What the ready line says of a server, whatever its engine."""

    url: str
    model: str
    needs_key: bool
    sampling: Mapping[str, float]
    """How answers are sampled where a request does not say."""
    is_recommended: bool
    """The model's makers recommend that; else it is a setting's."""
    page: str | None = None
    """URL at which a browser on this machine finds the server's pages; None where it has none."""

    def ready_line(self, info: RunnerInfo, seconds: float) -> str:
        """Address, model and formats, a request to try, how it will be sampled, and where the pages are.

        Args:
            seconds: time that the start took.
        """
        return (
            f"ready: {self.url} serves {self.model} ({_formats(info)}) after {seconds:.2f} s. Try:\n"
            f"  {try_it(self.url, self.model, needs_key=self.needs_key)}\n"
            f"  {self._sampling()}{pages_line(self.page)}"
        )

    def _sampling(self) -> str:
        fields = ", ".join(f"{name} {value:g}" for name, value in self.sampling.items()) or "temperature 1"
        source = "as the model recommends" if self.is_recommended else "by --default-sampling, as it recommends nothing"
        return f"Sampled with {fields} where a request does not say ({source})."


def pages_line(url: str | None) -> str:
    """A line with the addresses of the pages, the line break before it included; empty where there are none."""
    return "" if url is None else f"\n  In a browser: {url}/ to chat, {url}/docs for the API."


def try_it(url: str, model: str, *, needs_key: bool) -> str:
    """A command that asks a model something."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    # The shell puts the key in: it must not end up in a log.
    key = ' -H "Authorization: Bearer $TUILI_API_KEY"' if needs_key else ""
    return f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _formats(info: RunnerInfo) -> str:
    weights = info.dtype if info.quantization == "none" else info.quantization
    via = f", via {info.via}: slow, theirs" if info.via else ""
    return f"{weights} weights, {info.dtype} activations, {info.kv_cache_dtype} KV cache, {info.kernels} kernels{via}"
