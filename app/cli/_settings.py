"""Verbs that take every setting as an option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli._common import fail

if TYPE_CHECKING:
    from app.settings import Settings

_SHORT = {"model": "-m", "max_model_len": "-c"}
"""Letters that users of other servers type for a setting."""


class SettingsCommand(click.Command):
    """A verb that takes every setting as an option; they are read off the settings only when they are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The verb's own parameters and one option a setting."""
        from app.settings import Settings, has_flag

        options = [_option(name, field) for name, field in Settings.model_fields.items() if has_flag(field)]
        return [*self.params, *options, *super().get_params(ctx)[len(self.params) :]]


def settings_verb(name: str, *own: click.Parameter) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a function a verb.

    It is called with ``config_file``, the file of settings that was named, its ``own`` parameters and a value a
    setting, None or () where none was given: :func:`load_settings` takes these.
    """
    config = click.Option(
        ["--config", "config_file"], type=click.Path(path_type=Path), help="YAML file of settings (or TUILI_CONFIG)."
    )

    def decorate(function: Callable[..., None]) -> click.Command:
        return SettingsCommand(name=name, callback=function, params=[config, *own], help=function.__doc__)

    return decorate


def load_settings(
    flags: dict[str, Any], config_file: Path | None, *, several: bool = False
) -> tuple[Settings, dict[str, str]]:
    """The settings and where each value comes from (:func:`app.settings.load`).

    Args:
        several: the verb takes several models.

    A setting that cannot be used ends the program, a variable of the environment that is none is warned of.
    """
    from app import settings

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        loaded = settings.load(given, config_file)
    except settings.SettingsError as e:
        fail(str(e))
    if loaded[0].models and not several:
        fail("models: this command is about one model; name it (--model)")
    for name, hint in settings.unknown_environment().items():
        click.echo(f"tuili: warning: {name} is no setting{hint}; ignored", err=True)
    return loaded


def shown_value(value: Any) -> str:
    """A setting's value, as people write it."""
    if isinstance(value, dict):
        return ",".join(f"{name}={each}" for name, each in value.items()) or "none"
    return value.human_readable() if hasattr(value, "human_readable") else str(value)


def _option(name: str, field: Any) -> click.Option:
    from app.settings import flag_name

    flag = flag_name(name)
    declaration = f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag
    default = "" if field.default in (None, ()) else f"  [default: {shown_value(field.default)}]"
    short = [_SHORT[name]] if name in _SHORT else []
    return click.Option(
        [declaration, *short, name],
        default=None,
        multiple=field.default == (),
        # Validation belongs to the settings: one place, one wording, whatever the source.
        type=bool if field.annotation is bool else str,
        metavar=None if field.annotation is bool else name.rsplit("_", 1)[-1].upper(),
        help=f"{field.description}{default}",
    )
