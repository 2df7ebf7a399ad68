"""``tuili keys``."""

from __future__ import annotations

import click

from app.cli._common import fail


@click.group("keys")
def verb() -> None:
    """Make API keys."""


@verb.command()
@click.option("--name", required=True, help="Who has it: shown in logs instead of the key.")
@click.option("--scopes", default="infer", show_default=True, help="Comma-separated: infer, metrics, admin.")
def new(name: str, scopes: str) -> None:
    """Print a new key, once, and the line that lets --api-key-file know it without holding it."""
    from app.keys import KeyFormatError, new_key

    try:
        key, line = new_key(name, [scope.strip() for scope in scopes.split(",")])
    except KeyFormatError as e:
        fail(str(e))
    click.echo("key, shown only this once:", err=True)
    click.echo(key)
    click.echo("line for the file of --api-key-file:", err=True)
    click.echo(line)
