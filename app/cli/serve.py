"""``tuili serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.cli._settings import load_settings, settings_verb


@settings_verb("serve")
def verb(config_file: Path | None, **flags: Any) -> None:
    """Serve a model over HTTP (OpenAI API, SSE, Prometheus metrics)."""
    settings, _ = load_settings(flags, config_file)
    from app.serve.start import serve

    raise SystemExit(serve(settings))
