"""Answers under JSON Schemas by a small model: is every one that ended valid? The last line is JSON.

python -m benchmarks.schemas --schemas 500 --times 3

Schemas are those of the tests: some written by hand, the others from a seeded generator of what applications send. The
model answers under each at temperature 1. What ended by itself has to be valid by its schema (jsonschema, numbers taken
exactly); what ``max_tokens`` cut, and what was refused, is counted apart. Exit code 1 if an answer is not valid, or a
request came to something else.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import httpx
import jsonschema

from benchmarks.rows import RESULTS, context, report
from benchmarks.served import ServerError, served
from tests.schemas import BY_HAND, Schema, generated

ROUTE = "/v1/chat/completions"
_PARAM = "response_format.json_schema.schema"
_SHOWN_LENGTH = 800
"""Characters of a schema that the model is shown."""
_MAX_FAULTS = 20


@dataclass(slots=True)
class Tally:
    """Counts of answers by how they ended: ``stop``, ``length``, ``refused``; and what was wrong with them."""

    endings: Counter[str] = field(default_factory=Counter)
    num_faults: int = 0
    faults: list[str] = field(default_factory=list)
    """The first of them."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Why requests were refused."""

    def add(self, schema: Schema, seed: int, status: int, body: dict[str, Any]) -> None:
        """Judges an answer and counts it."""
        if status == httpx.codes.BAD_REQUEST:
            error = body["error"]
            self.endings["refused"] += 1
            self.refusals[error["message"]] += 1
            if not (error["param"] or "").startswith(_PARAM):
                self._fault(f"a refusal that names no place in the schema: {error}")
        elif status != httpx.codes.OK:
            self._fault(f"status {status}: {body}")
        else:
            choice = body["choices"][0]
            ending, text = choice["finish_reason"], choice["message"]["content"]
            self.endings[ending] += 1
            if ending == "stop" and not is_valid(text, schema):
                self._fault(f"seed {seed}: {text!r} is not valid by {json.dumps(schema)}")
            elif ending not in ("stop", "length"):
                self._fault(f"seed {seed}: an answer ended with {ending}")

    def _fault(self, fault: str) -> None:
        print(fault, file=sys.stderr, flush=True)
        self.num_faults += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(fault)


def is_valid(text: str, schema: Schema) -> bool:
    """Whether a text is JSON that is valid by a schema, its numbers taken exactly."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    validator = jsonschema.validators.validator_for(exact, jsonschema.Draft202012Validator)(exact)
    try:
        return bool(validator.is_valid(json.loads(text, parse_float=Decimal)))
    except json.JSONDecodeError:
        return False


def request(schema: Schema, seed: int, max_tokens: int) -> dict[str, Any]:
    """Body of a request for an answer under a schema."""
    asked = f"Make up an example of this, as JSON: {json.dumps(schema)[:_SHOWN_LENGTH]}"
    return {
        "messages": [{"role": "user", "content": asked}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
        "temperature": 1,
        "max_tokens": max_tokens,
        "seed": seed,
    }


async def run(
    url: str, tally: Tally, schemas: Sequence[Schema], *, times: int, concurrency: int, max_tokens: int
) -> None:
    """Asks for ``times`` answers under each schema, ``concurrency`` at once, and counts them in ``tally``.

    Raises:
        ServerError: a request got no answer.
    """
    asked = itertools.product(range(times), schemas)

    async def client(http: httpx.AsyncClient) -> None:
        for seed, schema in asked:
            try:
                answer = await http.post(ROUTE, json=request(schema, seed, max_tokens))
            except httpx.HTTPError as error:
                raise ServerError(f"a request failed: {error!r}") from error
            tally.add(schema, seed, answer.status_code, answer.json())
            if tally.endings.total() % 100 == 0:
                print(f"{dict(tally.endings)}, {tally.num_faults} faults", file=sys.stderr, flush=True)

    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=600) as http, asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client(http))


@click.command()
@click.option("--schemas", default=500, show_default=True, help="Generated schemas, beside those written by hand.")
@click.option("--times", default=3, show_default=True, help="Answers under each.")
@click.option("--concurrency", default=16, show_default=True, help="Requests at once.")
@click.option("--max-tokens", default=192, show_default=True, help="Most tokens of an answer.")
@click.option("--seed", default=0, show_default=True, help="Of the generator: another seed makes other schemas.")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--serve-arg", multiple=True, help="Further argument(s) of tuili serve, e.g. --serve-arg=--threads=2.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS / "schemas.jsonl", help="Where the row goes."
)
def main(schemas: int, seed: int, model: str, serve_arg: tuple[str, ...], output: Path, **options: Any) -> None:
    """Starts a server, has its model answer under each schema, and validates what ended."""
    row = {**context("schemas"), "model": model, "serve_args": list(serve_arg), "schemas": schemas, "seed": seed}
    started = time.perf_counter()
    tally = Tally()
    asked = [*BY_HAND.values(), *generated(schemas, seed)]
    try:
        with served("--model", model, *serve_arg) as server:
            asyncio.run(run(server.url, tally, asked, **options))
    except* ServerError as errors:
        tally.faults += [str(error) for error in errors.exceptions]
    seconds = round(time.perf_counter() - started, 1)
    found = {"answers": tally.endings.total(), **tally.endings, "refusals": dict(tally.refusals)}
    report(
        {**row, **options, "seconds": seconds, **found, "num_faults": tally.num_faults, "examples": tally.faults},
        output,
    )
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
