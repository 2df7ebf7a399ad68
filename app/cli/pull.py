"""``tuili pull``."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli._common import fail, home_option


@click.command("pull")
@click.argument("model", metavar="NAME|PATH")
@home_option
def verb(model: str, home: Path | None) -> None:
    """Fetch a model: a built-in name, a directory, a .gguf file or a hub id (org/name)."""
    from app.store import Store, StoreError, TerminalProgress, pull

    try:
        files = pull(model, Store(home), TerminalProgress())
    except StoreError as e:
        fail(str(e))
    click.echo(f"{files.name}: {files.directory}")
