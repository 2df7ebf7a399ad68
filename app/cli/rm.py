"""``tuili rm``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli._common import complete_model, fail, home_option

if TYPE_CHECKING:
    from app.store import Store
    from app.store.listing import Pulled
    from app.store.packed import PackedFile


@click.command("rm")
@click.argument("models", metavar="[NAME]...", nargs=-1, shell_complete=complete_model)
@click.option("--packed", "packed_only", is_flag=True, help="Free packed weights alone; without a NAME all of them.")
@click.option("--prefix-cache", is_flag=True, help="Free KV blocks that servers kept beside the models; names none.")
@home_option
def verb(models: tuple[str, ...], home: Path | None, *, packed_only: bool, prefix_cache: bool) -> None:
    """Delete models that were pulled, with their packed weights.

    A model that is used where it lies stays there; what was derived from it goes. With --packed only the weights in
    the layout of the kernels go, which the next start makes again.
    """
    if models and prefix_cache:
        raise click.UsageError("--prefix-cache frees the blocks of all models: name none with it")
    if not models and not packed_only and not prefix_cache:
        raise click.UsageError(
            "name a model (tuili list shows them), or --packed for all packed weights, or --prefix-cache for KV blocks"
        )
    from app.store import Store, StoreError
    from app.store.listing import find_pulled
    from app.store.packed import free, free_partial, packed_files
    from app.store.prefix_cache import free_blocks

    try:
        store = Store(home)
        if prefix_cache:
            _say("the prefix cache", free_blocks(store))
        if not models and packed_only:
            _say("packed weights", free(packed_files(store)) + free_partial(store))
        # All are looked for before any is deleted.
        for name, entries in [(name, find_pulled(store, name)) for name in models]:
            for each in entries:
                if packed_only:
                    _say(f"packed weights of {name}", free(_packed(store, each)))
                else:
                    _remove(store, each)
    except StoreError as e:
        fail(str(e))


def _packed(store: Store, model: Pulled) -> list[PackedFile]:
    from app.store.packed import packed_files

    return [file for file in packed_files(store) if file.is_of(model.weights)]


def _remove(store: Store, model: Pulled) -> None:
    from app.store import TerminalProgress
    from app.store.packed import free

    freed, linked = model.own_nbytes(), _linked(model)
    freed += free(_packed(store, model))
    store.remove(model.entry, TerminalProgress())
    _say(model.manifest.name, freed)
    for file in model.elsewhere:
        click.echo(f"  its weights stay where they are: {file}", err=True)
    if linked:
        click.echo("  its weights stay in the cache of the hub's client; hf cache frees them there", err=True)


def _linked(model: Pulled) -> bool:
    """Whether weights of the entry are another directory's as well."""
    inside = [file for file in model.weights if file.is_relative_to(model.directory) and file.exists()]
    return any(file.is_symlink() or file.stat().st_nlink > 1 for file in inside)


def _say(what: str, nbytes: int) -> None:
    from rich.filesize import decimal

    click.echo(f"removed {what}: {decimal(nbytes)} freed")
