"""``tuili ps``."""

from __future__ import annotations

from typing import Any

import click

from app.cli._common import api_key_option, fail, url_option

_FAR = "9999"
"""Year until which models stay that nobody unloads."""


@click.command("ps")
@url_option
@api_key_option
def verb(url: str, api_key: str | None) -> None:
    """List the models that a running server has loaded: size in memory, weights, context, until when."""
    from app.cli._table import print_table
    from app.client.loaded import running_models
    from app.client.target import TargetError

    try:
        models = running_models(url, api_key)
    except TargetError as e:
        fail(str(e))
    if models:
        print_table(("name", "size", "weights", "context", "until"), map(_row, models))
    else:
        click.echo(f"no models are loaded at {url}", err=True)


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    from rich.filesize import decimal

    details = model.get("details") or {}
    until = str(model.get("expires_at", ""))
    return (
        str(model.get("name", "")).removesuffix(":latest"),
        decimal(int(model.get("size") or 0)),
        str(details.get("quantization_level", "")),
        str(model.get("context_length", "")),
        "the server ends" if until.startswith(_FAR) else until,
    )
