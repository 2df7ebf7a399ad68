"""What several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

FAILURE = 1
home_option = click.option(
    "--home", type=click.Path(path_type=Path), envvar="TUILI_HOME", help="Directory of pulled models."
)
model_option = click.option("--model", help="Model to ask; the first that the server lists when absent.")
api_key_option = click.option("--api-key", envvar="OPENAI_API_KEY", help="Bearer token (or OPENAI_API_KEY).")


def fail(message: str) -> NoReturn:
    """Ends the program with one line that says why."""
    click.echo(f"tuili: error: {message}", err=True)
    raise SystemExit(FAILURE)
