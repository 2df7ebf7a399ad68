"""``tuili models``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from app.models.architecture import Architecture

HEADS = ("family", "models", "`architectures` in config.json", "GGUF", "tasks", "tested")
OTHERS = "Others that generate and that transformers has: tuili serve NAME|PATH --via transformers (slow, theirs)."
PIPE_WIDTH = 160
"""Characters of a line where no terminal has a width."""


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON in place of the table.")
@click.option("--markdown", "as_markdown", is_flag=True, help="The table in Markdown, as README has it.")
def verb(*, as_json: bool, as_markdown: bool) -> None:
    """List the families of models that are served, from which files, and by which models that is tested.

    All are read from safetensors; the column GGUF has the names in GGUF files. "tiny" are held to transformers on tiny
    models with random weights, "trained" on published weights too. Other models that generate may run,
    slowly, by `tuili serve NAME|PATH --via transformers`.
    """
    from app.models.architectures import ARCHITECTURES

    rows = sorted(ARCHITECTURES, key=lambda row: row.title.casefold())
    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    if as_json:
        click.echo(json.dumps([_fields(row) for row in rows]))
    elif as_markdown:
        click.echo(_markdown(rows))
    else:
        from rich.console import Console

        # Of a pipe no names are broken.
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(_table(rows))
        click.echo(OTHERS)


def _fields(row: Architecture) -> dict[str, object]:
    """A family as JSON has it."""
    return {
        "title": row.title,
        "examples": row.examples,
        "architectures": row.hf,
        "gguf": row.gguf + row.gguf_as,
        "tasks": row.tasks,
        "formats": row.formats,
        "tested": row.tested,
    }


def _markdown(rows: list[Architecture]) -> str:
    lines = [HEADS, ("---",) * len(HEADS)]
    for row in rows:
        hf, gguf = (", ".join(f"`{name}`" for name in names) for names in (row.hf, row.gguf + row.gguf_as))
        lines.append((row.title, row.examples, hf, gguf or "no", ", ".join(row.tasks), row.tested))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _table(rows: list[Architecture]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in HEADS:
        table.add_column(head.replace("`", ""), overflow="fold")
    for row in rows:
        hf, gguf = ("\n".join(names) for names in (row.hf, row.gguf + row.gguf_as))
        table.add_row(row.title, row.examples, hf, gguf or "no", "\n".join(row.tasks), row.tested)
    return table
