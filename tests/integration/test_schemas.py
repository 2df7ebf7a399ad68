"""Answers of the small model under JSON Schemas and other forms: each that ends is valid."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest

from benchmarks.schemas import Tally, run
from tests.integration.server import Server
from tests.schemas import BY_HAND, generated

NUM_GENERATED = 60


async def test_answers_under_schemas_are_valid(server: Server) -> None:
    schemas = [*list(BY_HAND.values())[:8], *generated(6, seed=99)]
    tally = Tally()
    await run(server.url, tally, schemas, times=1, concurrency=14, max_tokens=64)
    assert tally.faults == []
    assert tally.endings["stop"] >= 6
    assert tally.endings["refused"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_all_answers_under_many_schemas_are_valid(server: Server) -> None:
    schemas = [*BY_HAND.values(), *generated(NUM_GENERATED)]
    tally = Tally()
    await run(server.url, tally, schemas, times=1, concurrency=16, max_tokens=192)
    assert tally.faults == []
    assert tally.endings["refused"] == 0
    assert tally.endings["stop"] >= 0.5 * tally.endings.total()


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"structured_outputs": {"choice": ["positive", "negative"]}}, r"positive|negative"),
        ({"guided_regex": r"\d{3}-\d{4}"}, r"\d{3}-\d{4}"),
        ({"grammar": 'root ::= "yes" | "no" " sir"?'}, r"yes|no( sir)?"),
        ({"guided_grammar": 'start: WORD ("," WORD)~1..2\nWORD: /[a-z]{1,8}/'}, r"[a-z]{1,8}(,[a-z]{1,8}){1,2}"),
        (
            {"response_format": {"type": "json_object"}, "stop": ["}"], "include_stop_str_in_output": True},
            r"\{[^}]*\}?",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_answers_have_the_form_that_was_asked_for(
    server: Server, fields: dict[str, Any], matches: str, stream: bool
) -> None:
    body = {"prompt": "The answer:", "max_tokens": 24, "temperature": 1, "n": 2, "seed": 5, "stream": stream, **fields}
    texts: dict[int, str] = {}
    with httpx.Client(base_url=server.url, timeout=120) as client:
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
    for event in events:
        for choice in json.loads(event)["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert len(texts) == 2
    pattern = f"^(?:{matches})$"
    for text in texts.values():
        jsonschema.validate(text, {"pattern": pattern})


def test_grammars_of_tgi_bind_answers(server: Server) -> None:
    parameters = {"max_new_tokens": 32, "grammar": {"type": "regex", "value": "(a|b){4}"}}
    answer = httpx.post(f"{server.url}/generate", json={"inputs": "x", "parameters": parameters}, timeout=120)
    assert answer.status_code == 200, answer.text
    jsonschema.validate(answer.json()["generated_text"], {"pattern": "^(a|b){4}$"})
