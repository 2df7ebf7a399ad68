"""``tuili chat``."""

from __future__ import annotations

import click

from app.cli._common import api_key_option, model_option, url_option


@click.command("chat")
@url_option
@model_option
@api_key_option
@click.option("--system", help="System prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of an answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="The server's default when absent.")
def verb(url: str, model: str | None, api_key: str | None, system: str | None, **body: float | None) -> None:
    """Talk to a running server: a line is a turn, from the terminal or a pipe.

    Ctrl-C stops an answer, /reset starts over, Ctrl-D leaves.
    """
    from app.client.conversation import run

    given = {name: value for name, value in body.items() if value is not None}
    raise SystemExit(run(url, model=model, api_key=api_key, system=system, body=given))
