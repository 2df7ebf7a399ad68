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
    from app.store import Store
    from app.store.home import Manifest

FAILURE = 1


class SettingsCommand(click.Command):
    """A verb that takes every setting as an option; they are read off the settings only when they are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The verb's own parameters and one option a setting."""
        from app.settings import Settings, has_flag

        options = [_option(name, field) for name, field in Settings.model_fields.items() if has_flag(field)]
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


def _shown(settings: Settings, name: str) -> str:
    from app.settings import has_flag

    value = getattr(settings, name)
    if not has_flag(type(settings).model_fields[name]):
        return f"set ({len(value)} key{'s' if len(value) > 1 else ''})" if value else "not set"
    return _plain(value)


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


def _settings_verb(function: Callable[..., None], *own: click.Parameter) -> click.Command:
    config = click.Option(
        ["--config", "config_file"], type=click.Path(path_type=Path), help="YAML file of settings (or TUILI_CONFIG)."
    )
    return SettingsCommand(
        name=function.__name__.strip("_"), callback=function, params=[config, *own], help=function.__doc__
    )


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
        click.echo(f"{name:<{width}}  {_shown(settings, name)}  ({source})")


def plan(
    config_file: Path | None, model_name: str | None, gpu_memory: str | None, *, json_only: bool, **flags: Any
) -> None:
    """Compute how a GPU's memory would be spent on a model, without loading it; the GPU need not be there."""
    settings, _ = _load({**flags, "model": model_name or flags["model"]}, config_file)
    from app.plan import PlanError
    from app.plan import plan as run

    try:
        run(settings, gpu_memory, json_only=json_only)
    except PlanError as e:
        _fail(str(e))


main.add_command(
    _settings_verb(
        plan,
        click.Argument(["model_name"], required=False, metavar="[NAME|PATH]"),
        click.Option(["--gpu-memory"], help="All of a GPU's memory, e.g. 80GiB; of the GPU that is here when absent."),
        click.Option(["--json", "json_only"], is_flag=True, help="No table, only the line of JSON on stdout."),
    )
)


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


@main.command()
@click.argument("model", metavar="NAME|PATH")
@click.option("--out", type=click.Path(path_type=Path), help="Directory to make; MODEL-int8 when absent.")
@click.option("--report/--no-report", default=True, help="Measure perplexity against fp32; takes minutes.")
@click.option("--home", type=click.Path(path_type=Path), envvar="TUILI_HOME", help="Directory of pulled models.")
def quantize(model: str, out: Path | None, home: Path | None, *, report: bool) -> None:
    """Write an int8 checkpoint of a model, and what the int8 costs: perplexity and top-1 agreement against fp32."""
    from app.quality.command import QuantizeError
    from app.quality.command import quantize as run

    try:
        run(model, out, home, report=report)
    except QuantizeError as e:
        _fail(str(e))


@main.command("list")
@click.option("--home", type=click.Path(path_type=Path), envvar="TUILI_HOME", help="Directory of pulled models.")
def list_models(home: Path | None) -> None:
    """List the models that were pulled: name, size, source."""
    from app.store import Store, StoreError

    try:
        store = Store(home)
        rows = [(manifest.name, _size(store, entry, manifest), manifest.source) for entry, manifest in store.entries()]
    except StoreError as e:
        _fail(str(e))
    if not rows:
        click.echo(f"no models in {store.home}; fetch one with: tuili pull smollm2-135m", err=True)
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, size, source in rows:
        click.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {source}")


def _size(store: Store, entry: str, manifest: Manifest) -> str:
    """What a model takes on the disk, weights that lie elsewhere included."""
    from rich.filesize import decimal

    directory = store.home / "models" / entry
    files = {path for path in directory.rglob("*") if path.is_file()} | {directory / file for file in manifest.weights}
    try:
        return decimal(sum(path.stat().st_size for path in files))
    except FileNotFoundError:
        return "weights missing"


@main.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Server, with or without /v1.")
@click.option("--model", help="Model to ask; the first that the server lists when absent.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Bearer token (or OPENAI_API_KEY).")
@click.option("--system", help="System prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of an answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="The server's default when absent.")
def chat(url: str, model: str | None, api_key: str | None, system: str | None, **body: float | None) -> None:
    """Talk to a running server: a line is a turn, from the terminal or a pipe.

    Ctrl-C stops an answer, /reset starts over, Ctrl-D leaves.
    """
    from app.chat import run

    given = {name: value for name, value in body.items() if value is not None}
    raise SystemExit(run(url, model=model, api_key=api_key, system=system, body=given))


@main.command()
@click.argument("url", metavar="URL")
@click.option("--model", help="Model to ask; the first that the server lists when absent.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Bearer token (or OPENAI_API_KEY).")
@click.option("--json", "json_only", is_flag=True, help="No table, only the line of JSON on stdout.")
def doctor(url: str, model: str | None, api_key: str | None, *, json_only: bool) -> None:
    """Check a live server against what the OpenAI SDK, lm-eval, TGI clients and dashboards rely on.

    Exits with 1 when something that the server offers breaks its contract.
    """
    from app.doctor.run import run

    raise SystemExit(run(url, model=model, api_key=api_key, json_only=json_only))


@main.group()
def keys() -> None:
    """Make API keys."""


@keys.command()
@click.option("--name", required=True, help="Who has it: shown in logs instead of the key.")
@click.option("--scopes", default="infer", show_default=True, help="Comma-separated: infer, metrics, admin.")
def new(name: str, scopes: str) -> None:
    """Print a new key, once, and the line that lets --api-key-file know it without holding it."""
    from app.keys import KeyFormatError, new_key

    try:
        key, line = new_key(name, [scope.strip() for scope in scopes.split(",")])
    except KeyFormatError as e:
        _fail(str(e))
    click.echo("key, shown only this once:", err=True)
    click.echo(key)
    click.echo("line for the file of --api-key-file:", err=True)
    click.echo(line)


main.add_command(bench)


if __name__ == "__main__":
    sys.exit(main())
