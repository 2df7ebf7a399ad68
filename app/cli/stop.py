"""``tuili stop``."""

from __future__ import annotations

import click

from app.cli._common import api_key_option, fail, url_option


@click.command("stop")
@click.argument("model", metavar="NAME")
@url_option
@api_key_option
def verb(model: str, url: str, api_key: str | None) -> None:
    """Have a running server unload a model; requests that it has get their answers first.

    The server goes on, and the model comes back with the next request for it. A server that keeps its models says so,
    and nothing ends: such a server is ended itself, by Ctrl-C or SIGTERM.
    """
    from app.client.loaded import unload
    from app.client.target import TargetError

    try:
        unload(url, api_key, model)
    except TargetError as e:
        fail(str(e))
    click.echo(f"unloaded {model}")
