"""``tuili config``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli._settings import load_settings, settings_verb, shown_value

if TYPE_CHECKING:
    from app.settings import Settings


@settings_verb("config")
def verb(config_file: Path | None, **flags: Any) -> None:
    """Print every setting, its value and where it comes from."""
    settings, sources = load_settings(flags, config_file, several=True)
    width = max(len(name) for name in sources)
    for name, source in sources.items():
        click.echo(f"{name:<{width}}  {_shown(settings, name)}  ({source})")


def _shown(settings: Settings, name: str) -> str:
    from app.settings import has_flag

    value = getattr(settings, name)
    if not has_flag(type(settings).model_fields[name]):
        return f"set ({len(value)} key{'s' if len(value) > 1 else ''})" if value else "not set"
    return shown_value(value)
