"""``tuili top``."""

from __future__ import annotations

import click

from app.cli._common import api_key_option, url_option


@click.command("top")
@url_option
@api_key_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    help="Seconds between two readings.",
)
@click.option("--once", is_flag=True, help="Show one reading and end.")
def verb(url: str, api_key: str | None, *, interval: float, once: bool) -> None:
    """Watch a running server: its load, tokens a second, KV cache and prefix cache, model by model, and each request.

    Of a server on this machine also the power of processors and GPUs, where their counters can be read. Ctrl-C leaves.
    """
    from app.client.top import run

    raise SystemExit(run(url, api_key, interval=interval, once=once))
