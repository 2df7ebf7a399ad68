"""``tuili top``: a server's load, as it is, in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.client.energy import EnergyCounters
from app.client.figures import Figures, Load, load_between, read_figures
from app.client.target import TargetError, api_root, auth_headers, describe_body, describe_exception

_HEADS = ("model", "running", "waiting", "out tok/s", "in tok/s", "KV", "prefix hits")
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
_SECONDS = 10.0


class Watch:
    """Reads a server's metrics again and again.

    Args:
        url: with or without ``/v1``.
    """

    def __init__(self, url: str, http: httpx.Client) -> None:
        self._root = api_root(url).removesuffix("/v1")
        self._http = http
        is_here = httpx.URL(self._root).host in _THIS_MACHINE
        self._energy = EnergyCounters() if is_here else None

    def loads(self, interval: float) -> Iterator[tuple[dict[str, Load], str]]:
        """Yields, every ``interval`` seconds, the load by model and a line on energy, empty where there are no
        counters.

        Raises:
            TargetError: the server does not answer, or not with metrics.
        """
        before, when = self._read(), time.monotonic()
        while True:
            time.sleep(interval)
            after, now = self._read(), time.monotonic()
            loads = {model: load_between(before.get(model, each), each, now - when) for model, each in after.items()}
            yield loads, self._energy_line(loads, now - when)
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
            readings = Watch(url, http).loads(interval)
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


def _lines(readings: Iterator[tuple[dict[str, Load], str]], *, once: bool) -> None:
    for loads, energy in readings:
        for model, load in loads.items():
            cells = zip(_HEADS[1:], _cells(load), strict=True)
            said = [model, *(f"{head} {cell}" for head, cell in cells), *filter(None, [energy])]
            sys.stdout.write("  ".join(said) + "\n")
        sys.stdout.flush()
        if once:
            return


def _table(readings: Iterator[tuple[dict[str, Load], str]], url: str) -> None:
    with Live(Text(f"{url} …"), console=Console(), auto_refresh=False) as live:
        for loads, energy in readings:
            table = Table(box=SIMPLE_HEAD, pad_edge=False)
            for head in _HEADS:
                table.add_column(head, justify="left" if head == _HEADS[0] else "right")
            for model, load in loads.items():
                table.add_row(Text(model), *_cells(load))
            live.update(Group(table, Text(f"{url}  {energy}  Ctrl-C leaves")), refresh=True)


def _cells(load: Load) -> tuple[str, ...]:
    hits = "-" if load.hit_ratio is None else f"{load.hit_ratio:.0%}"
    rates = (f"{load.generated_rate:.1f}", f"{load.prompt_rate:.1f}")
    return (f"{load.running:.0f}", f"{load.waiting:.0f}", *rates, f"{load.kv_usage:.0%}", hits)
