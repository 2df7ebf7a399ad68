"""``tuili plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.cli._common import fail
from app.cli._settings import load_settings, settings_verb


@settings_verb(
    "plan",
    click.Argument(["model_name"], required=False, metavar="[NAME|PATH]"),
    click.Option(["--gpu-memory"], help="All of a GPU's memory, e.g. 80GiB; of the GPU that is here when absent."),
    click.Option(["--json", "json_only"], is_flag=True, help="No table, only the line of JSON on stdout."),
)
def verb(
    config_file: Path | None, model_name: str | None, gpu_memory: str | None, *, json_only: bool, **flags: Any
) -> None:
    """Compute how a GPU's memory would be spent on a model, without loading it; the GPU need not be there."""
    settings, _ = load_settings({**flags, "model": model_name or flags["model"]}, config_file)
    from app.serve.plan import PlanError, plan

    try:
        plan(settings, gpu_memory, json_only=json_only)
    except PlanError as e:
        fail(str(e))
