"""Answers of the small model under JSON Schemas and other forms: each that ends is valid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx
import jsonschema
import pytest

from tests.integration.server import Server
from tests.schemas import BY_HAND, Schema, generated

NUM_GENERATED = 60
CHAT = "/v1/chat/completions"


def is_valid(text: str, schema: Schema) -> bool:
    """Whether a text is JSON that is valid by a schema, its numbers taken exactly."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    validator = jsonschema.validators.validator_for(exact, jsonschema.Draft202012Validator)(exact)
    return bool(validator.is_valid(json.loads(text, parse_float=Decimal)))


def ask(client: httpx.Client, schema: Schema, seed: int, max_tokens: int) -> tuple[str, str]:
    """How an answer under a schema ended, and its text; ``refused`` and why."""
    body = {
        "messages": [{"role": "user", "content": f"Make up an example of this, as JSON: {json.dumps(schema)[:800]}"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
        "temperature": 1,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    answer = client.post(CHAT, json=body)
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert error["param"].startswith("response_format.json_schema.schema"), error
        return "refused", error["message"]
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["finish_reason"], choice["message"]["content"]


def check(server: Server, schemas: Sequence[Schema], *, times: int, max_tokens: int) -> Counter[str]:
    """Generates and validates; how many answers ended which way."""
    asked = [(schema, seed) for schema in schemas for seed in range(times)]
    with httpx.Client(base_url=server.url, timeout=600) as client, ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda each: ask(client, each[0], each[1], max_tokens), asked))
    for (schema, seed), (ending, text) in zip(asked, results, strict=True):
        if ending == "stop":
            assert is_valid(text, schema), f"seed {seed}: {text!r} is not valid by {json.dumps(schema)}"
    return Counter(ending for ending, _ in results)


def test_answers_under_schemas_are_valid(server: Server) -> None:
    endings = check(server, [*list(BY_HAND.values())[:8], *generated(6, seed=99)], times=1, max_tokens=64)
    assert endings["stop"] >= 6
    assert endings["refused"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_answers_under_many_schemas_are_valid(server: Server) -> None:
    endings = check(server, [*BY_HAND.values(), *generated(NUM_GENERATED)], times=1, max_tokens=192)
    assert endings["refused"] == 0
    assert endings["stop"] >= 0.5 * endings.total()


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
