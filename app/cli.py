"""The verbs. ``tuili --help`` answers at once: a verb imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.bench.command import bench
from app.version import __version__

if TYPE_CHECKING:
    from app.settings import Settings

FAILURE = 1


class SettingsCommand(click.Command):
    """A verb that takes every setting as an option; they are read off the settings only when they are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The verb's own parameters and one option a setting."""
        from app.settings import Settings

        options = [_option(name, field) for name, field in Settings.model_fields.items()]
        return [*self.params, *options, *super().get_params(ctx)[len(self.params) :]]


def _option(name: str, field: Any) -> click.Option:
    from app.settings import flag_name

    flag = flag_name(name)
    declaration = f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag
    default = "" if field.default in (None, ()) else f"  [default: {_plain(field.default)}]"
    return click.Option(
        [declaration, name],
        default=None,
        multiple=field.default == (),
        # Validation belongs to the settings: one place, one wording, whatever the source.
        type=bool if field.annotation is bool else str,
        metavar=None if field.annotation is bool else name.rsplit("_", 1)[-1].upper(),
        help=f"{field.description}{default}",
    )


def _plain(value: Any) -> str:
    return value.human_readable() if hasattr(value, "human_readable") else str(value)


def _load(flags: dict[str, Any], config: Path | None) -> tuple[Settings, dict[str, str]]:
    from app import settings

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        loaded = settings.load(given, config)
    except settings.SettingsError as e:
        _fail(str(e))
    for name in settings.unknown_environment():
        click.echo(f"tuili: warning: {name} is no setting; ignored", err=True)
    return loaded


def _fail(message: str) -> Any:
    click.echo(f"tuili: error: {message}", err=True)
    raise SystemExit(FAILURE)


def _settings_verb(function: Callable[..., None]) -> click.Command:
    config = click.Option(
        ["--config", "config_file"], type=click.Path(path_type=Path), help="YAML file of settings (or TUILI_CONFIG)."
    )
    return SettingsCommand(name=function.__name__.strip("_"), callback=function, params=[config], help=function.__doc__)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="tuili")
def main() -> None:
    """tuili serves language models over HTTP from one box."""


@main.add_command
@_settings_verb
def serve(config_file: Path | None, **flags: Any) -> None:
    """Serve a model over HTTP (OpenAI API, SSE, Prometheus metrics)."""
    settings, _ = _load(flags, config_file)
    from app.main import serve as run

    raise SystemExit(run(settings))


@main.add_command
@_settings_verb
def config(config_file: Path | None, **flags: Any) -> None:
    """Print every setting, its value and where it comes from."""
    settings, sources = _load(flags, config_file)
    width = max(len(name) for name in sources)
    for name, source in sources.items():
        click.echo(f"{name:<{width}}  {_plain(getattr(settings, name))}  ({source})")


@main.command()
@click.argument("model", metavar="NAME|PATH")
@click.option("--home", type=click.Path(path_type=Path), envvar="TUILI_HOME", help="Directory of pulled models.")
def pull(model: str, home: Path | None) -> None:
    """Fetch a model: a built-in name, a directory, a .gguf file or a hub id (org/name)."""
    from app.store import Store, StoreError, TerminalProgress
    from app.store import pull as fetch

    try:
        files = fetch(model, Store(home), TerminalProgress())
    except StoreError as e:
        _fail(str(e))
    click.echo(f"{files.name}: {files.directory}")


main.add_command(bench)


if __name__ == "__main__":
    sys.exit(main())
