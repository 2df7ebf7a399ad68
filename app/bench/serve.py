"""``tuili bench serve``: one run from its options to its row of figures."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import importlib.util
import itertools
import os
import platform
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console

from app.bench.arrivals import arrival_times
from app.bench.client import Client
from app.bench.load import Load, LoadRun
from app.bench.options import BenchError, Options
from app.bench.prompts import Prompt, SyntheticPrompts, read_prompts
from app.bench.report import live_progress, print_report
from app.bench.summary import summarise
from app.client.target import TargetError, first_model
from app.version import __version__

DEFAULT_NUM_PROMPTS = 100
DEFAULT_CONCURRENCY = 8
INTERRUPTED = 130
"""Exit code of a program that SIGINT ended."""
_FILES = ("output", "requests_output", "plot", "prompts")


def run(options: Options) -> int:
    """Measures a server; the figures go to stdout as one line of JSON, everything for people to stderr.

    Returns:
        The exit code: 1 when no request succeeded, 130 when interrupted.
    """
    console = Console(stderr=True)
    try:
        options = _complete(options)
        prompts = _prompts(options)
        finished = asyncio.run(_measure(options, prompts, console))
        row = _row(options, finished)
        print_report(console, row)
        _write_files(options, row, finished)
    except (BenchError, TargetError) as e:
        console.print(f"tuili: error: {e}", markup=False, highlight=False, soft_wrap=True)
        return 1
    sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    if finished.interrupted:
        return INTERRUPTED
    return 0 if row["completed"] else 1


def _complete(options: Options) -> Options:
    """Fills in what was left open, so that the row says what was really done."""
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib: pip install 'tuili[plot]'")
    for file in (options.output, options.requests_output, options.plot):
        if file is not None and not file.parent.is_dir():
            raise BenchError(f"{file.parent} is not a directory")
    num_prompts = options.num_prompts
    if num_prompts is None and options.duration is None and options.prompts is None:
        num_prompts = DEFAULT_NUM_PROMPTS
    concurrency = options.concurrency
    if concurrency is None and options.request_rate is None:
        concurrency = DEFAULT_CONCURRENCY
    return dataclasses.replace(
        options,
        num_prompts=num_prompts,
        concurrency=concurrency,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
        model=options.model or first_model(options.url, options.api_key),
    )


def _prompts(options: Options) -> Iterable[Prompt]:
    if options.prompts is None:
        return itertools.islice(_synthetic(options).generate(str(options.seed)), options.num_prompts)
    prompts = read_prompts(options.prompts)
    if len(prompts) < (options.num_prompts or 0):
        raise BenchError(f"{options.prompts} has {len(prompts)} prompts: to ask one twice would measure a cache")
    if options.endpoint == "chat" and not all(isinstance(prompt.content, str) for prompt in prompts):
        raise BenchError(f"{options.prompts}: token ids are for the completions endpoint")
    return prompts[: options.num_prompts]


def _synthetic(options: Options) -> SyntheticPrompts:
    return SyntheticPrompts(
        options.prompt_type, options.input_len, options.output_len, options.prefix_len, options.id_range
    )


async def _measure(options: Options, prompts: Iterable[Prompt], console: Console) -> LoadRun:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    # The whole request has a bound of its own; a server may be silent for as long as it likes within that.
    async with httpx.AsyncClient(limits=limits, timeout=None) as http:  # noqa: S113
        client = Client(http, options, options.model or "", options.seed or 0)
        with _interruption() as stop:
            await _warm_up(client, options, console, stop)
            total = len(prompts) if isinstance(prompts, list) else options.num_prompts
            with live_progress(console, total, options.duration) as show:
                load = Load(client.send, prompts, duration=options.duration, on_change=show)
                if options.request_rate is None:
                    return await load.closed(options.concurrency or DEFAULT_CONCURRENCY, stop)
                arrivals = arrival_times(options.request_rate, options.burstiness, options.seed or 0)
                return await load.open(arrivals, stop)


async def _warm_up(client: Client, options: Options, console: Console, stop: asyncio.Event) -> None:
    """Sends requests that are not counted, and that share nothing with those that are."""
    prompts = itertools.islice(_synthetic(options).generate(f"{options.seed}/warmup"), options.warmup)
    with console.status("warming up"):
        finished = await Load(client.send, prompts).closed(max(1, options.warmup), stop)
    for result in finished.results:
        if result.error is not None:
            raise BenchError(f"a warm-up request failed ({result.error}): {result.message}")
    if finished.interrupted:
        raise BenchError("interrupted while warming up")


@contextlib.contextmanager
def _interruption() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT sets; the second ends the program."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _row(options: Options, finished: LoadRun) -> dict[str, Any]:
    told = {
        item.name: getattr(options, item.name)
        for item in dataclasses.fields(options)
        if item.repr and item.name not in _FILES
    }
    # What was asked for as a cap is told apart from how long it took.
    told["max_duration"] = told.pop("duration")
    return {
        "bench": "serve",
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "client_machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "mode": "closed" if options.request_rate is None else "open",
        **told,
        "prompts": options.prompts and options.prompts.name,
        **summarise(finished, options.goodput),
    }


def _write_files(options: Options, row: dict[str, Any], finished: LoadRun) -> None:
    try:
        if options.output is not None:
            _append(options.output, [row])
        if options.requests_output is not None:
            _append(options.requests_output, sorted(finished.results, key=lambda result: result.index))
        if options.plot is not None:
            from app.bench.plot import save_plot

            load = (
                f"concurrency {options.concurrency}" if options.concurrency else f"{options.request_rate:g} requests/s"
            )
            save_plot(finished.results, f"{options.model}, {load}", options.plot)
    except (OSError, ValueError) as e:
        # The figures are too dear to be lost for that.
        Console(stderr=True).print(f"tuili: warning: {e}", markup=False, highlight=False, soft_wrap=True)


def _append(path: Path, rows: Iterable[Any]) -> None:
    with path.open("ab") as file:
        file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
