"""``tuili pull``."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli._common import complete_model, fail, home_option


@click.command("pull")
@click.argument("model", metavar="NAME|PATH", shell_complete=complete_model)
@click.option("--revision", help="Branch, tag or commit of a hub id; or write ID@REVISION.")
@home_option
@click.option("--via", type=click.Choice(["transformers"]), help="What is to compute the model, as for serve.")
def verb(model: str, revision: str | None, home: Path | None, via: str | None) -> None:
    """Fetch a model: a built-in name, a directory, a .gguf file or a hub id (org/name)."""
    from app.store import Store, StoreError, TerminalProgress, at_revision, pull

    try:
        files = pull(at_revision(model, revision), Store(home), TerminalProgress(), via=via)
    except StoreError as e:
        fail(str(e))
    click.echo(f"{files.name}: {files.directory}")
