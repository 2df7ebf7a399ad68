"""``tuili top``: a server's load, as it is, in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.client.energy import EnergyCounters
from app.client.engine_view import EngineView, EngineViews, RequestRow
from app.client.figures import Figures, Load, load_between, read_figures
from app.client.target import TargetError, api_root, auth_headers, describe_body, describe_exception

_HEADS = ("model", "state", "running", "waiting", "out tok/s", "in tok/s", "KV", "cached", "prefix hits")
_REQUEST_HEADS = ("model", "request", "state", "seconds", "prompt", "cached", "generated", "KV blocks")
_MOST_REQUESTS = 12
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A server over an interval."""

    loads: dict[str, Load]
    """By model."""
    engines: dict[str, EngineView]
    """Those of the models that the server tells of."""
    energy: str
    """A line; empty where there are no counters."""


class Watch:
    """Reads a server's metrics again and again, and its engines where it tells of them.

    Args:
        url: with or without ``/v1``.
    """

    def __init__(self, url: str, http: httpx.Client) -> None:
        self._root = api_root(url).removesuffix("/v1")
        self._http = http
        self._engines = EngineViews(self._root, http)
        is_here = httpx.URL(self._root).host in _THIS_MACHINE
        self._energy = EnergyCounters() if is_here else None

    def readings(self, interval: float) -> Iterator[Reading]:
        """Yields a reading every ``interval`` seconds.

        Raises:
            TargetError: the server does not answer, or not with metrics.
        """
        before, when = self._read(), time.monotonic()
        while True:
            time.sleep(interval)
            after, now = self._read(), time.monotonic()
            loads = {model: load_between(before.get(model, each), each, now - when) for model, each in after.items()}
            yield Reading(loads, self._engines.read(loads), self._energy_line(loads, now - when))
            before, when = after, now

    def _read(self) -> dict[str, Figures]:
        where = f"{self._root}/metrics"
        try:
            answer = self._http.get(where)
        except httpx.HTTPError as e:
            raise TargetError(f"cannot reach {where}: {describe_exception(e)}; tuili serve starts a server") from None
        if answer.status_code in (401, 403):
            raise TargetError(f"{where}: {describe_body(answer.content)} /metrics takes a key of the scope metrics")
        if not answer.is_success:
            raise TargetError(f"{where}: HTTP {answer.status_code}: {describe_body(answer.content)}")
        return read_figures(answer.text)

    def _energy_line(self, loads: Mapping[str, Load], seconds: float) -> str:
        used = self._energy.read() if self._energy is not None else {}
        if not used:
            return ""
        tokens = seconds * sum(load.generated_rate for load in loads.values())
        each = f", {sum(used.values()) / tokens:.2f} J a token" if tokens else ""
        return ", ".join(f"{kind} {joules / seconds:.1f} W" for kind, joules in used.items()) + each


def run(url: str, api_key: str | None, *, interval: float, once: bool) -> int:
    """Shows a server's load until Ctrl-C: a table that changes on a terminal, a line a model and reading elsewhere.

    Args:
        interval: seconds between two readings.
        once: show one reading.

    Returns:
        The exit code.
    """
    try:
        with httpx.Client(headers=auth_headers(api_key), timeout=_SECONDS) as http:
            readings = Watch(url, http).readings(interval)
            if once or not sys.stdout.isatty():
                _lines(readings, once=once)
            else:
                _table(readings, url)
    except (TargetError, httpx.InvalidURL) as e:
        sys.stderr.write(f"tuili: error: {e}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _lines(readings: Iterator[Reading], *, once: bool) -> None:
    for reading in readings:
        for model, load in reading.loads.items():
            cells = zip(_HEADS[1:], _cells(load, reading.engines.get(model)), strict=True)
            said = [model, *(f"{head} {cell}" for head, cell in cells if cell), *filter(None, [reading.energy])]
            sys.stdout.write("  ".join(said) + "\n")
        sys.stdout.flush()
        if once:
            return


def _table(readings: Iterator[Reading], url: str) -> None:
    with Live(Text(f"{url} …"), console=Console(), auto_refresh=False) as live:
        for reading in readings:
            table = _new_table(_HEADS)
            for model, load in reading.loads.items():
                table.add_row(Text(model), *_cells(load, reading.engines.get(model)))
            end = Text(f"{url}  {reading.energy}  Ctrl-C leaves")
            live.update(Group(table, *_requests(reading.engines), end), refresh=True)


def _requests(engines: Mapping[str, EngineView]) -> Iterator[Table | Text]:
    """The requests under way, those first that came first."""
    rows = [(model, each) for model, view in engines.items() for each in view.requests]
    if not rows:
        return
    rows.sort(key=lambda row: -row[1].seconds)
    table = _new_table(_REQUEST_HEADS)
    for model, each in rows[:_MOST_REQUESTS]:
        table.add_row(Text(model), *_request_cells(each))
    yield table
    if len(rows) > _MOST_REQUESTS:
        yield Text(f"{len(rows) - _MOST_REQUESTS} more requests")


def _new_table(heads: tuple[str, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head in ("model", "state") else "right")
    return table


def _cells(load: Load, engine: EngineView | None) -> tuple[str, ...]:
    """Cells behind the model; those that only an engine's view fills are empty without one."""
    rates = (f"{load.generated_rate:.1f}", f"{load.prompt_rate:.1f}")
    state = "" if engine is None else engine.state
    cached = "" if engine is None else _share(engine.cached_share)
    return (
        state,
        f"{load.running:.0f}",
        f"{load.waiting:.0f}",
        *rates,
        f"{load.kv_usage:.0%}",
        cached,
        _share(load.hit_ratio),
    )


def _request_cells(request: RequestRow) -> tuple[str, ...]:
    counts = (request.prompt_tokens, request.cached_tokens, request.generated_tokens, request.blocks)
    return (str(request.number), request.status, f"{request.seconds:.1f}", *map(str, counts))


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
