"""``tuili batch``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.cli._settings import load_settings, settings_verb

_FILE = click.Path(path_type=Path, dir_okay=False)
_COUNT = click.IntRange(min=1, max=65536)


@settings_verb(
    "batch",
    click.Argument(["requests"], type=click.Path(path_type=Path, dir_okay=False, exists=True)),
    click.Option(["--output", "-o"], type=_FILE, help="File of results.  [default: REQUESTS' name, .results.jsonl]"),
    click.Option(["--url"], help="Server to ask, with or without /v1; without it the model is loaded here."),
    click.Option(["--api-key"], envvar="OPENAI_API_KEY", help="Bearer token for --url (or OPENAI_API_KEY)."),
    click.Option(
        ["--concurrency"], type=_COUNT, help="Requests under way at once.  [default: 16; here --max-num-seqs]"
    ),
    click.Option(
        ["--timeout"],
        type=click.FloatRange(min=0, min_open=True, max=1e9),
        default=600.0,
        show_default=True,
        help="Seconds that a request may take.",
    ),
    click.Option(
        ["--retries"],
        type=click.IntRange(min=0, max=1000),
        default=8,
        show_default=True,
        help="Tries after the first where the server has no room (429, 503) or breaks off.",
    ),
)
def verb(
    config_file: Path | None,
    requests: Path,
    output: Path | None,
    url: str | None,
    api_key: str | None,
    concurrency: int | None,
    timeout: float,
    retries: int,
    **flags: Any,
) -> None:
    """Answer a file of requests, row by row.

    REQUESTS is JSONL as OpenAI's batches have it, an object of custom_id, method, url and body a line. Each row
    gets one row of results, written when it is done, in that order; an error is a row too. A run that was ended
    goes on where it was when it is started again. Exits with 1 when a row failed, with 130 when interrupted.
    """
    from app.batch.run import DEFAULT_CONCURRENCY, Options, run

    def options(concurrent: int) -> Options:
        return Options(
            requests=requests, output=output, concurrency=concurrency or concurrent, timeout=timeout, retries=retries
        )

    if url is not None:
        if given := [name for name, value in {**flags, "config": config_file}.items() if value not in (None, ())]:
            flag = "--" + given[0].replace("_", "-")
            raise click.UsageError(f"--url asks a server that runs; {flag} is for a model that is loaded here")
        raise SystemExit(run(options(DEFAULT_CONCURRENCY), url, api_key))
    settings, sources = load_settings(flags, config_file)
    from app.serve.batch import run_here

    raise SystemExit(run_here(options(settings.max_num_seqs), settings, sources))
