"""``tuili run``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from app.cli._common import complete_model
from app.cli._settings import settings_verb


@settings_verb(
    "run",
    click.Argument(["model_name"], metavar="NAME|PATH", shell_complete=complete_model),
    click.Argument(["prompt"], required=False),
    click.Option(["--system"], help="System prompt."),
    click.Option(["--max-tokens"], type=click.IntRange(min=1), help="Most tokens of an answer."),
    click.Option(["--temperature"], type=click.FloatRange(min=0), help="The model's default when absent."),
)
def verb(
    config_file: Path | None,
    model_name: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    **flags: Any,
) -> None:
    """Talk to a model: starts a server for it, and ends it with the conversation.

    With a PROMPT, or text from a pipe, or both (the prompt first), the answer alone is printed; otherwise it is a
    conversation, as of `tuili chat`. The server is this conversation's own: a free port of this machine and a key that
    nobody else has.
    """
    question = _question(prompt)
    from app.client.conversation import run
    from app.serve.child import ChildError, child_server, serve_arguments

    body = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in body.items() if value is not None}
    show = partial(click.echo, err=True) if sys.stderr.isatty() else lambda _: None
    try:
        with child_server(serve_arguments(model_name, config_file, flags), show) as (url, key):
            code = run(url, model=None, api_key=key, system=system, body=given, question=question)
    except ChildError as e:
        code = e.code
    raise SystemExit(code)


def _question(prompt: str | None) -> str | None:
    """What is asked at once; None for a conversation. Raises :class:`click.UsageError` for nothing."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    question = "\n\n".join(part for part in (prompt or "", piped) if part.strip())
    if question:
        return question
    if prompt is None and sys.stdin.isatty():
        return None
    raise click.UsageError('nothing is asked: give a prompt, as in tuili run NAME "Why is the sky blue?"')
