"""``tuili quantize``: writes an int8 checkpoint and says what it costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from app.checkpoints.header import WeightError
from app.checkpoints.int8 import write_int8_checkpoint
from app.models.architectures import parse_config
from app.models.config import ConfigError
from app.quality.report import Row, compare
from app.store import ModelFiles, ProgressReporter, SilentProgress, Store, StoreError, TerminalProgress, pull
from app.store.files import TEMPLATES, find_weights, read_model
from app.store.progress import Advance

REPORT = "quality.json"
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


class QuantizeError(Exception):
    """A checkpoint that cannot be made; one line that says why."""


def quantize(model: str, out: Path | None, home: Path | None, *, report: bool) -> None:
    """Writes the int8 checkpoint of a model and, if asked for, ``quality.json`` beside it; prints both.

    Raises:
        QuantizeError: it cannot be read or written.
    """
    try:
        progress = TerminalProgress()
        files = pull(model, Store(home), progress)
        directory = out if out is not None else Path(f"{Path(files.name).name}-int8")
        quantized = write(files, directory, progress)
    except (StoreError, ConfigError, WeightError) as error:
        raise QuantizeError(str(error)) from None
    except OSError as error:
        raise QuantizeError(f"{error.filename or out}: {error.strerror or error}") from None
    if report:
        rows = list(compare(files, quantized=quantized, home=home, announce=lambda name: click.echo(f"  {name} …")))
        click.echo(table(rows))
        text = json.dumps([row.fields() for row in rows], ensure_ascii=False)
        (directory / REPORT).write_text(text + "\n", encoding="utf-8")
        click.echo(text)


def write(files: ModelFiles, directory: Path, progress: ProgressReporter | None = None) -> ModelFiles:
    """Makes ``directory``, which must not hold a model yet, an int8 checkpoint of a model.

    Args:
        progress: shows how far it is; None: nothing does.

    Raises:
        QuantizeError: there is a model, or the checkpoint is quantised already, in another way than FP8.
        ConfigError: nobody serves such a model.
        OSError: a file cannot be written.
        WeightError: a tensor cannot be read.
    """
    if (directory / "config.json").exists():
        raise QuantizeError(f"{directory} holds a model already; choose another directory with --out")
    if files.config.get("quantization_config") and parse_config(files.config).fp8 is None:
        raise QuantizeError(f"{files.name} is quantised already")
    directory.mkdir(parents=True, exist_ok=True)
    templates = [f"{TEMPLATES}/{file.name}" for file in (files.directory / TEMPLATES).glob("*.jinja")]
    for name in (*_COPIED, *templates):
        (directory / name).parent.mkdir(exist_ok=True)
        if (files.directory / name).is_file():
            shutil.copyfile(files.directory / name, directory / name)
    shutil.copyfile(files.tokenizer_file, directory / "tokenizer.json")
    total = sum(path.stat().st_size for path in files.weights)
    with (progress or SilentProgress()).task(f"Quantising {files.name}", total) as advance:
        nbytes = write_int8_checkpoint(files.config, files.weights, directory, progress=_in_steps(advance))
    click.echo(f"{directory}: {nbytes / 1e6:.1f} MB; serve it with: tuili serve --model {directory}")
    return read_model(directory.name, directory, find_weights(directory))


def _in_steps(advance: Advance) -> Callable[[int, int], None]:
    """Reports what came since the last call, of what is counted from the beginning."""
    before = 0

    def report(done: int, _total: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return report


def table(rows: Iterable[Row]) -> str:
    """The report as a table for people."""
    lines = [f"{'format':<16}{'text':<10}{'tokens':>8}{'perplexity':>12}{'x fp32':>9}{'top-1 as fp32':>15}"]
    lines += [
        f"{row.weights:<16}{row.language:<10}{row.num_tokens:>8}{row.perplexity:>12.3f}{row.ratio:>9.4f}"
        f"{100 * row.agreement:>13.2f} %"
        for row in rows
    ]
    return "\n".join(lines)
