"""``tuili doctor``: asks, and reports."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import httpx
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.client.target import TargetError, api_root, auth_headers, describe_exception
from app.doctor import openai, others
from app.doctor.check import Outcome, Target

_STYLES = {"ok": "green", "failed": "bold red", "not offered": "dim"}
_SECONDS = 60.0
"""Seconds that one answer may take. Nothing that is asked is long."""


def run(url: str, *, model: str | None, api_key: str | None, json_only: bool) -> int:
    """Checks a server; the findings go to stdout as one line of JSON, a table for people to stderr.

    Args:
        json_only: leave the table out.

    Returns:
        The exit code: 1 when a check failed, when nothing is offered, or when there is no server.
    """
    console = Console(stderr=True)
    try:
        outcomes = list(examine(url, model=model, api_key=api_key))
    except TargetError as e:
        console.print(f"tuili: error: {e}", markup=False, highlight=False, soft_wrap=True)
        return 1
    if not json_only:
        console.print(_table(outcomes))
    counts = Counter(outcome.status for outcome in outcomes)
    row = {
        "url": url,
        "ok": counts["ok"],
        "failed": counts["failed"],
        "not_offered": counts["not offered"],
        "checks": outcomes,
    }
    sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    return 0 if counts["ok"] and not counts["failed"] else 1


def examine(url: str, *, model: str | None = None, api_key: str | None = None) -> Iterator[Outcome]:
    """Makes every check, one after the other.

    Raises:
        TargetError: there is no server.
    """
    root = api_root(url).removesuffix("/v1")
    with httpx.Client(timeout=_SECONDS) as http:
        listed = _listed_model(http, root, api_key)
        target = Target(http, root, api_key, model or listed)
        for check in (*openai.checks(), *others.checks()):
            yield check.outcome(target)


def _listed_model(http: httpx.Client, root: str, api_key: str | None) -> str | None:
    """The first model of the list, if there is such a list: what is wrong with it is for a check to say."""
    try:
        listed = http.get(f"{root}/v1/models", headers=auth_headers(api_key))
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise TargetError(f"cannot reach {root}: {describe_exception(e)}") from None
    try:
        return str(listed.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        return None


def _table(outcomes: Iterable[Outcome]) -> Table:
    table = Table()
    for column in ("contract", "check", "", "why"):
        table.add_column(column)
    for outcome in outcomes:
        status = Text(outcome.status, style=_STYLES[outcome.status])
        table.add_row(outcome.protocol, outcome.name, status, Text(outcome.detail))
    return table
