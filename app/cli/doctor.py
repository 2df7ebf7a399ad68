"""``tuili doctor``."""

from __future__ import annotations

import click

from app.cli._common import api_key_option, model_option


@click.command("doctor")
@click.argument("url", metavar="URL")
@model_option
@api_key_option
@click.option("--json", "json_only", is_flag=True, help="No table, only the line of JSON on stdout.")
def verb(url: str, model: str | None, api_key: str | None, *, json_only: bool) -> None:
    """Check a live server against what the OpenAI SDK, lm-eval, TGI clients and dashboards rely on.

    Exits with 1 when something that the server offers breaks its contract.
    """
    from app.doctor.run import run

    raise SystemExit(run(url, model=model, api_key=api_key, json_only=json_only))
