"""``tuili bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from app.cli._common import api_key_option, model_option

_COUNT = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)
_RATE = click.FloatRange(min=0, min_open=True, max=1e6)
_FILE = click.Path(path_type=Path, dir_okay=False)
_BOUNDED = ("ttft", "tpot", "e2el")


def _lengths(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        lengths = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not like 128 or 128,512", ctx, param) from None
    if min(lengths) < 1:
        raise click.BadParameter("a length is at least 1", ctx, param)
    return lengths


def _id_range(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    first, _, end = value.partition("-")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise click.BadParameter(f"{value!r} is not like 1000-30000", ctx, param)
    return int(first), int(end)


def _json_object(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any]:
    try:
        found = json.loads(value) if value else {}
    except json.JSONDecodeError as e:
        raise click.BadParameter(str(e), ctx, param) from None
    if not isinstance(found, dict):
        raise click.BadParameter("not a JSON object", ctx, param)
    return found


def _bounds(parts: list[str]) -> dict[str, float]:
    bounds = {}
    for part in parts:
        name, _, bound = part.partition(":")
        try:
            bounds[name] = float(bound)
        except ValueError:
            raise click.UsageError(f"--goodput: {part!r} is not like ttft:200") from None
        if name not in _BOUNDED:
            raise click.UsageError(f"--goodput: {name!r} is none of {', '.join(_BOUNDED)}")
    return bounds


@click.group("bench")
def verb() -> None:
    """Measure a server."""


@verb.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Server, with or without /v1.")
@click.option("--endpoint", type=click.Choice(["completions", "chat"]), default="completions", show_default=True)
@model_option
@api_key_option
@click.option("--concurrency", type=_COUNT, help="Closed loop: requests under way at once.  [default: 8]")
@click.option("--request-rate", type=_RATE, help="Open loop instead: requests a second, Poisson arrivals.")
@click.option("--burstiness", type=_RATE, default=1.0, help="Shape of the gaps: 1 is Poisson, less is burstier.")
@click.option("--num-prompts", type=_COUNT, help="Requests.  [default: 100, the whole file, or no end by --duration]")
@click.option("--duration", type=_SECONDS, help="Seconds after which no request starts.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Requests before, not counted."
)
@click.option("--timeout", type=_SECONDS, default=600.0, show_default=True, help="Seconds a request may take.")
@click.option("--prompts", type=_FILE, help='JSONL of {"prompt": …, "max_tokens": …} instead of synthetic prompts.')
@click.option(
    "--prompt-type",
    type=click.Choice(["words", "ids"]),
    default="words",
    show_default=True,
    help="Synthetic prompts: words, about a token each, or token ids (completions only), exact.",
)
@click.option("--input-len", default="128", show_default=True, callback=_lengths, help="Length(s), e.g. 128,512.")
@click.option("--output-len", default="128", show_default=True, callback=_lengths, help="max_tokens, one or several.")
@click.option(
    "--prefix-len", type=click.IntRange(min=0), default=0, help="Length of a beginning that all prompts share."
)
@click.option("--id-range", default="1000-30000", show_default=True, callback=_id_range, help="Token ids of prompts.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option(
    "--ignore-eos/--no-ignore-eos", default=None, help="Go on to max_tokens.  [default: with synthetic prompts]"
)
@click.option("--extra-body", callback=_json_object, metavar="JSON", help="Fields added to every request.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Of prompts, arrivals, sampling.  [default: another each time]"
)
@click.option("--goodput", metavar="SLO…", help="Count requests within, e.g. ttft:200 tpot:50 e2el:2000 (ms).")
@click.option("--output", type=_FILE, help="JSONL to append the figures to.")
@click.option("--requests-output", type=_FILE, help="JSONL to append every request to.")
@click.option("--plot", type=_FILE, help="Image of the latencies' distributions (needs the extra 'plot').")
@click.argument("more_bounds", nargs=-1, metavar="")
def serve(goodput: str | None, more_bounds: tuple[str, ...], **given: Any) -> None:
    """Measure a server that speaks the OpenAI API.

    Prompts are random and differ between runs, so that a prefix cache cannot flatter; what it served is reported. The
    figures are the last line on stdout, as JSON.
    """
    if more_bounds and goodput is None:
        raise click.UsageError(f"unexpected argument {more_bounds[0]!r}")
    if given["concurrency"] is not None and given["request_rate"] is not None:
        raise click.UsageError("--concurrency is a closed loop, --request-rate an open one: choose")
    if given["prompt_type"] == "ids" and given["endpoint"] == "chat":
        raise click.UsageError("--prompt-type ids: the chat endpoint takes text only")
    bounds = _bounds([*(goodput or "").split(), *more_bounds])
    from app.bench.options import Options
    from app.bench.serve import run

    raise SystemExit(run(Options(goodput=bounds, **given)))
