"""``tuili list``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli._common import fail, home_option

if TYPE_CHECKING:
    from app.store.listing import Pulled
    from app.store.packed import PackedFile


@click.command("list")
@home_option
def verb(home: Path | None) -> None:
    """List the models that were pulled: name, size, size of packed weights, source."""
    from rich.filesize import decimal

    from app.store import Store, StoreError
    from app.store.listing import pulled
    from app.store.packed import packed_files
    from app.store.prefix_cache import block_bytes

    try:
        store = Store(home)
        models, packed, blocks = pulled(store), packed_files(store), block_bytes(store)
    except StoreError as e:
        fail(str(e))
    if not models:
        click.echo(f"no models in {store.home}; fetch one with: tuili pull smollm2-135m", err=True)
    rows = [(each.manifest.name, _size(each), _packed(each, packed), each.manifest.source) for each in models]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for name, size, made, source in rows:
        middle = f"  {made:>{widths[2]}}" if widths[2] else ""
        click.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}{middle}  {source}")
    if packed:
        others = [file for file in packed if not any(file.is_of(each.weights) for each in models)]
        total = decimal(sum(file.nbytes for file in packed))
        beside = f", {decimal(sum(file.nbytes for file in others))} of them of other models" if others else ""
        click.echo(f"packed weights: {total}{beside}; tuili rm --packed frees them, a start makes them again", err=True)
    if blocks:
        click.echo(f"prefix cache: {decimal(blocks)}; tuili rm --prefix-cache frees it", err=True)


def _packed(model: Pulled, packed: list[PackedFile]) -> str:
    from rich.filesize import decimal

    nbytes = sum(file.nbytes for file in packed if file.is_of(model.weights))
    return f"+ {decimal(nbytes)} packed" if nbytes else ""


def _size(model: Pulled) -> str:
    """Size of a model on the disk, weights that lie elsewhere included."""
    from rich.filesize import decimal

    try:
        return decimal(model.nbytes())
    except FileNotFoundError:
        return "weights missing"
