"""``tuili serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.cli._settings import load_settings, settings_verb


@settings_verb("serve", click.Argument(["model_name"], required=False, metavar="[NAME|PATH]"))
def verb(config_file: Path | None, model_name: str | None, **flags: Any) -> None:
    """Serve a model over HTTP (OpenAI API, SSE, Prometheus metrics)."""
    settings, _ = load_settings({**flags, "model": model_name or flags["model"]}, config_file)
    from app.serve.start import serve

    raise SystemExit(serve(settings))
