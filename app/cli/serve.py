"""``tuili serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.cli._settings import load_settings, settings_verb

_API_KEY = click.Option(
    ["--api-key", "api_keys"],
    multiple=True,
    metavar="KEY",
    help="Key that clients need; may repeat. Every user of this machine sees it: TUILI_API_KEYS keeps it from them.",
)


@settings_verb("serve", click.Argument(["model_names"], nargs=-1, metavar="[NAME|PATH]..."), _API_KEY)
def verb(config_file: Path | None, model_names: tuple[str, ...], **flags: Any) -> None:
    """Serve models over HTTP (OpenAI API, SSE, Prometheus metrics).

    Of several the first is loaded at the start, each other when a request asks for it.
    """
    settings, _ = load_settings({**flags, **_named(model_names)}, config_file, several=True)
    from app.serve.start import serve

    raise SystemExit(serve(settings))


def _named(model_names: tuple[str, ...]) -> dict[str, Any]:
    """The setting that the arguments are."""
    if len(model_names) > 1:
        return {"models": model_names, "model": None}
    return {"model": model_names[0], "models": None} if model_names else {}
