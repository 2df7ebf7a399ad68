"""``tuili quantize``."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli._common import fail, home_option


@click.command("quantize")
@click.argument("model", metavar="NAME|PATH")
@click.option("--out", type=click.Path(path_type=Path), help="Directory to make; MODEL-int8 when absent.")
@click.option("--report/--no-report", default=True, help="Measure perplexity against fp32; takes minutes.")
@home_option
def verb(model: str, out: Path | None, home: Path | None, *, report: bool) -> None:
    """Write an int8 checkpoint of a model, and what the int8 costs: perplexity and top-1 agreement against fp32."""
    from app.quality.quantize import QuantizeError, quantize

    try:
        quantize(model, out, home, report=report)
    except QuantizeError as e:
        fail(str(e))
