"""What several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

FAILURE = 1
home_option = click.option(
    "--home", type=click.Path(path_type=Path), envvar="TUILI_HOME", help="Directory of pulled models."
)
model_option = click.option("--model", "-m", help="Model to ask; the first that the server lists when absent.")
url_option = click.option(
    "--url",
    envvar="OPENAI_BASE_URL",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="Server, with or without /v1 (or OPENAI_BASE_URL).",
)
api_key_option = click.option("--api-key", envvar="OPENAI_API_KEY", help="Bearer token (or OPENAI_API_KEY).")


def complete_model(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of models that a shell may complete: those that were pulled, and those built in."""
    from app.store import Store, StoreError
    from app.store.catalog import CATALOG

    try:
        pulled = [manifest.name for _, manifest in Store().entries()]
    except StoreError:
        pulled = []
    return [name for name in sorted({*pulled, *CATALOG}) if name.startswith(incomplete)]


def fail(message: str) -> NoReturn:
    """Ends the program with one line that says why."""
    click.echo(f"tuili: error: {message}", err=True)
    raise SystemExit(FAILURE)
