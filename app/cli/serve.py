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


@settings_verb("serve", click.Argument(["model_name"], required=False, metavar="[NAME|PATH]"), _API_KEY)
def verb(config_file: Path | None, model_name: str | None, **flags: Any) -> None:
    """Serve a model over HTTP (OpenAI API, SSE, Prometheus metrics)."""
    settings, _ = load_settings({**flags, "model": model_name or flags["model"]}, config_file)
    from app.serve.start import serve

    raise SystemExit(serve(settings))
