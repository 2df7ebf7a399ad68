"""Tool calls by a small model: are the arguments of every one valid by their schema? The last lines are JSON.

python -m benchmarks.tool_calls --calls 10000 --tool-format generic --tool-format llama3

Half of the calls are made under ``required``, the others under ``auto``, after a conversation that shows the model how
to call; every other reply is streamed. A reply that ``max_tokens`` cut is counted apart, its calls before the cut one
held to their schemas. Exit code 1 if a single call is not valid. A row for each format.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import jsonschema

from app.client.sse import DONE, EventDecoder
from benchmarks.called_tools import TOOLS, Tool
from benchmarks.rows import RESULTS, context, report
from benchmarks.served import ServerError, served

ROUTE = "/v1/chat/completions"
MODES = ("required", "auto")
_OFFERED = 3
"""Tools of a request."""
_SHOWN = 2
"""Calls that the conversation before an ``auto`` reply shows."""
_MAX_FAULTS = 20
_MAX_REPLIES_PER_CALL = 4
"""Replies that are asked for at most, for each call that is wanted: under ``auto`` a model may say anything."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a reply."""

    name: str
    arguments: str


@dataclass(slots=True)
class Reply:
    """What a reply came to."""

    calls: list[Call] = field(default_factory=list)
    finish_reason: str | None = None
    refused: str | None = None
    """Why the request was refused."""


@dataclass(slots=True)
class Tally:
    """Counts of one format."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Calls that were held to their schema."""
        return self.counts["valid"] + self.counts["invalid"]

    def add(self, mode: str, reply: Reply, offered: Sequence[Tool]) -> None:
        """Judges a reply and counts what it holds."""
        self.counts["replies"] += 1
        if reply.refused is not None:
            self.counts["refused"] += 1
            return
        is_cut = reply.finish_reason == "length"
        whole = reply.calls[:-1] if is_cut else reply.calls
        self.counts["cut"] += is_cut
        self.counts["without_call"] += not reply.calls
        if mode == "required" and not reply.calls and not is_cut:
            self._fault("no call where one was required")
        if reply.calls and not is_cut and reply.finish_reason != "tool_calls":
            self._fault(f"a reply with calls ended with {reply.finish_reason}")
        for call in whole:
            fault = check(call, offered)
            self.counts["valid" if fault is None else "invalid"] += 1
            self.counts[f"{mode}_calls"] += 1
            if fault is not None:
                self._fault(fault)

    def _fault(self, fault: str) -> None:
        self.counts["num_faults"] += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(fault)


def check(call: Call, offered: Sequence[Tool]) -> str | None:
    """What is wrong with a call; None when it is valid."""
    tool = next((tool for tool in offered if tool.name == call.name), None)
    if tool is None:
        return f"{call.name!r} is no tool of the request"
    try:
        jsonschema.validate(json.loads(call.arguments), tool.parameters)
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        reason = str(error).splitlines()[0]
        return f"{call.name}({call.arguments}): {reason}"
    return None


def request(number: int, mode: str, seed: int, max_tokens: int) -> tuple[dict[str, Any], list[Tool]]:
    """A request's body and the tools that it offers."""
    rng = random.Random(f"{seed}/{number}")
    offered = rng.sample(TOOLS, _OFFERED)
    wanted = rng.choice(offered)
    messages: list[dict[str, Any]] = []
    if mode == "auto":
        for index in range(_SHOWN):
            messages += _shown(rng.choice(offered), f"call{index:05d}")
    messages.append({"role": "user", "content": wanted.question})
    body = {
        "messages": messages,
        "tools": [tool.definition() for tool in offered],
        "tool_choice": mode,
        "parallel_tool_calls": rng.random() < 0.5,
        "temperature": 1,
        "seed": rng.randrange(2**31),
        "max_tokens": max_tokens,
        "stream": number % 2 == 1,
    }
    return body, offered


def _shown(tool: Tool, call_id: str) -> list[dict[str, Any]]:
    function = {"name": tool.name, "arguments": json.dumps(tool.example)}
    return [
        {"role": "user", "content": tool.question},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "done"},
        {"role": "assistant", "content": "Done."},
    ]


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Reply:
    """The reply to a request, streamed or whole.

    Raises:
        ServerError: neither a reply nor a refusal of the request came.
    """
    try:
        async with http.stream("POST", ROUTE, json=body) as response:
            if response.status_code == httpx.codes.BAD_REQUEST:
                return Reply(refused=json.loads(await response.aread())["error"]["message"])
            if response.status_code != httpx.codes.OK:
                raise ServerError(f"{response.status_code}: {(await response.aread()).decode()}")
            if not body["stream"]:
                return _whole(json.loads(await response.aread()))
            return await _streamed(response)
    except httpx.HTTPError as error:
        raise ServerError(f"a request failed: {error!r}") from error


def _whole(answer: Any) -> Reply:
    (choice,) = answer["choices"]
    functions = [call["function"] for call in choice["message"].get("tool_calls") or ()]
    return Reply([Call(each["name"], each["arguments"]) for each in functions], choice["finish_reason"])


async def _streamed(response: httpx.Response) -> Reply:
    reply = Reply()
    found: dict[int, list[str]] = {}
    decoder = EventDecoder()
    async for piece in response.aiter_bytes():
        for data in decoder.feed(piece):
            if data == DONE:
                continue
            event = json.loads(data)
            if "error" in event:
                raise ServerError(f"a stream failed: {event['error']}")
            for choice in event["choices"]:
                reply.finish_reason = choice["finish_reason"] or reply.finish_reason
                for call in choice["delta"].get("tool_calls") or ():
                    name_and_arguments = found.setdefault(call["index"], ["", ""])
                    name_and_arguments[0] += call["function"].get("name", "")
                    name_and_arguments[1] += call["function"].get("arguments", "")
    reply.calls = [Call(*found[index]) for index in sorted(found)]
    return reply


async def run(url: str, tally: Tally, *, calls: int, concurrency: int, max_tokens: int, seed: int) -> None:
    """Asks until so many calls were made, half of them in each mode, and counts them in ``tally``.

    Raises:
        ServerError: the server failed, or the model does not call often enough.
    """
    number = 0
    limits = httpx.Limits(max_connections=concurrency)

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal number
        while tally.calls < calls:
            if number >= calls * _MAX_REPLIES_PER_CALL:
                raise ServerError(f"{number} replies held only {tally.calls} whole calls: {dict(tally.counts)}")
            is_enough = tally.counts["required_calls"] >= calls / 2
            body, offered = request(number, MODES[is_enough], seed, max_tokens)
            number += 1
            tally.add(body["tool_choice"], await ask(http, body), offered)
            if tally.counts["replies"] % 100 == 0:
                print(f"{tally.calls} of {calls} calls, {tally.counts['invalid']} invalid", file=sys.stderr, flush=True)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=600) as http, asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client(http))


@click.command()
@click.option("--calls", default=10_000, show_default=True, help="Whole calls to make with each format.")
@click.option("--concurrency", default=16, show_default=True, help="Requests at once.")
@click.option("--max-tokens", default=160, show_default=True, help="Most tokens of a reply.")
@click.option("--tool-format", "formats", multiple=True, default=("auto",), show_default=True, help="May repeat.")
@click.option("--seed", default=0, show_default=True, help="Of requests and sampling: another seed makes other calls.")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--serve-arg", multiple=True, help="Further argument(s) of tuili serve, e.g. --serve-arg=--threads=2.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS / "tool_calls.jsonl", help="Where the rows go."
)
def main(model: str, formats: tuple[str, ...], serve_arg: tuple[str, ...], output: Path, **options: Any) -> None:
    """Starts a server for each format, has its model call tools, and validates every call."""
    failed = False
    for name in formats:
        row = {**context("tool_calls"), "model": model, "tool_format": name, "serve_args": list(serve_arg), **options}
        started = time.perf_counter()
        tally = Tally()
        try:
            with served("--model", model, "--tool-format", name, *serve_arg) as server:
                asyncio.run(run(server.url, tally, **options))
        except* ServerError as errors:
            tally.faults += [str(error) for error in errors.exceptions]
        failed = failed or bool(tally.faults)
        seconds = round(time.perf_counter() - started, 1)
        report(
            {**row, "seconds": seconds, "whole_calls": tally.calls, **tally.counts, "examples": tally.faults}, output
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
