"""``tuili list``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli._common import fail, home_option

if TYPE_CHECKING:
    from app.store import Store
    from app.store.home import Manifest


@click.command("list")
@home_option
def verb(home: Path | None) -> None:
    """List the models that were pulled: name, size, source."""
    from app.store import Store, StoreError

    try:
        store = Store(home)
        rows = [(manifest.name, _size(store, entry, manifest), manifest.source) for entry, manifest in store.entries()]
    except StoreError as e:
        fail(str(e))
    if not rows:
        click.echo(f"no models in {store.home}; fetch one with: tuili pull smollm2-135m", err=True)
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, size, source in rows:
        click.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {source}")


def _size(store: Store, entry: str, manifest: Manifest) -> str:
    """Size of a model on the disk, weights that lie elsewhere included."""
    from rich.filesize import decimal

    directory = store.home / "models" / entry
    files = {path for path in directory.rglob("*") if path.is_file()} | {directory / file for file in manifest.weights}
    try:
        return decimal(sum(path.stat().st_size for path in files))
    except FileNotFoundError:
        return "weights missing"
