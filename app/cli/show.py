"""``tuili show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli._common import api_key_option, complete_model, fail, home_option

if TYPE_CHECKING:
    from app.store import Store


@click.command("show")
@click.argument("model", metavar="NAME|PATH", shell_complete=complete_model)
@click.option("--url", help="A running server, with or without /v1, that is asked instead of this machine's disk.")
@api_key_option
@home_option
def verb(model: str, url: str | None, api_key: str | None, home: Path | None) -> None:
    """Show what is known of a model: family, context, sampling, files, licence.

    Of one on this machine; with --url of one that a running server has loaded.
    """
    from app.cli._table import print_table
    from app.client.target import TargetError
    from app.store import Store, StoreError

    try:
        rows = _on_disk(model, Store(home)) if url is None else _served(model, url, api_key)
    except (TargetError, StoreError) as e:
        fail(str(e))
    print_table(("", ""), [(name, text) for name, text in rows.items() if text])


def _served(model: str, url: str, api_key: str | None) -> dict[str, str]:
    from app.client.loaded import shown_model

    shown = shown_model(url, api_key, model)
    details, info = shown.get("details") or {}, shown.get("model_info") or {}
    return {
        "model": model,
        "parameters": str(details.get("parameter_size", "")),
        "weights": str(details.get("quantization_level", "")),
        **{str(name).rpartition(".")[2].replace("_", " "): str(value) for name, value in info.items()},
        "sampling": ", ".join(str(shown.get("parameters", "")).splitlines()),
        "can": ", ".join(map(str, shown.get("capabilities") or ())),
        "chat template": "yes" if shown.get("template") else "no",
    }


def _on_disk(model: str, store: Store) -> dict[str, str]:
    from rich.filesize import decimal

    from app.models.architectures import find, parse_config
    from app.models.config import ConfigError
    from app.store import StoreError, resolve
    from app.store.packed import packed_files

    files = resolve(model, store)
    try:
        config = parse_config(files.config)
    except ConfigError as e:
        raise StoreError(f"{files.directory}: {e}") from None
    packed = sum(file.nbytes for file in packed_files(store) if file.is_of(files.weights))
    sampling = {name: files.generation_config.get(name) for name in ("temperature", "top_p", "top_k", "min_p")}
    return {
        "model": files.name,
        "family": find(config.architecture).title,
        "context": str(config.context_length),
        "weights": f"{decimal(sum(path.stat().st_size for path in files.weights))} in {_places(files.weights)}",
        "packed weights": decimal(packed) if packed else "",
        "sampling": ", ".join(f"{name} {value}" for name, value in sampling.items() if value is not None),
        "chat template": "yes" if files.chat_template else "no",
        **_of_manifest(store, files.directory),
    }


def _of_manifest(store: Store, directory: Path) -> dict[str, Any]:
    """Facts that were noted when the model was pulled; none of a directory that is used where it lies."""
    found = store.find(directory.name) if directory.parent == store.home / "models" else None
    if found is None:
        return {}
    manifest = found[1]
    return {"source": manifest.source, "revision": manifest.revision or "", "licence": manifest.licence or ""}


def _places(weights: tuple[Path, ...]) -> str:
    return str(weights[0]) if len(weights) == 1 else f"{len(weights)} files of {weights[0].parent}"
