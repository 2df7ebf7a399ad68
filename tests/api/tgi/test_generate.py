"""The protocol of text-generation-inference."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.service import ApiSettings
from app.version import __version__
from tests.api.conftest import Server, start_server, start_server_without_engine
from tests.api.openai.test_completions import said
from tests.byte_tokenizer import BOS_ID, EOS_ID, IM_END_ID, IM_START_ID
from tests.serving.rig import recite, until

INPUTS = "Tell me: "


async def generate(server: Server, inputs: str = INPUTS, **parameters: Any) -> dict[str, Any]:
    answer = await server.post("/generate", {"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def streamed(server: Server, inputs: str = INPUTS, **parameters: Any) -> list[dict[str, Any]]:
    answer = await server.post("/generate_stream", {"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith("data:{") for line in lines)
    return [json.loads(line.removeprefix("data:")) for line in lines]


def sampling_of(server: Server) -> Any:
    assert server.rig.runner is not None
    return server.rig.runner.steps[0].slots[0].sampling


async def test_text_alone(server: Server) -> None:
    assert await generate(server, max_new_tokens=12) == {"generated_text": said(len(INPUTS), 12)}
    bare = await server.post("/generate", {"inputs": INPUTS})
    assert bare.json() == {"generated_text": said(len(INPUTS), 100)}
    full = await generate(server, max_new_tokens=12, return_full_text=True)
    assert full == {"generated_text": INPUTS + said(len(INPUTS), 12)}


async def test_details(server: Server) -> None:
    answer = await generate(server, "ab", max_new_tokens=3, details=True, decoder_input_details=True, top_n_tokens=2)
    details = answer["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 3, None)
    assert details["prefill"] == [
        {"id": 97, "text": "a", "logprob": None},
        {"id": 98, "text": "b", "logprob": -0.5},
    ]
    assert [list(token) for token in details["tokens"]] == [["id", "text", "logprob", "special"]] * 3
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    assert [[top["logprob"] for top in tops] for tops in details["top_tokens"]] == [[-0.5, -1.5]] * 3
    short = (await generate(server, max_new_tokens=1, details=True))["details"]
    assert short["prefill"] == []
    assert "top_tokens" not in short


async def test_a_stream_has_one_event_a_token(server: Server) -> None:
    whole = await generate(server, max_new_tokens=40, details=True)
    events = await streamed(server, max_new_tokens=40, details=True)
    assert [list(event) for event in events] == [["index", "token", "generated_text", "details"]] * 40
    assert [event["index"] for event in events] == list(range(1, 41))
    assert [event["token"] for event in events] == whole["details"]["tokens"]
    assert [event["generated_text"] for event in events] == [None] * 39 + [whole["generated_text"]]
    assert [event["details"] for event in events[:-1]] == [None] * 39
    last = {"finish_reason": "length", "generated_tokens": 40, "seed": None, "input_length": len(INPUTS)}
    assert events[-1]["details"] == last
    bare = await streamed(server, max_new_tokens=2, top_n_tokens=1, return_full_text=True)
    assert bare[-1]["details"] is None
    assert bare[-1]["generated_text"] == INPUTS + said(len(INPUTS), 2)
    assert [len(event["top_tokens"]) for event in bare] == [1, 1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 30),
    prompt=st.integers(1, 25),
    stops=st.lists(st.text("élwö 你好", min_size=1, max_size=3), max_size=16),
)
async def test_tokens_make_up_the_text(shared_server: Server, length: int, prompt: int, stops: list[str]) -> None:
    parameters = {"max_new_tokens": length, "stop": stops, "details": True}
    whole = await generate(shared_server, "x" * prompt, **parameters)
    events = await streamed(shared_server, "x" * prompt, **parameters)
    details = whole["details"]
    assert [event["token"] for event in events] == details["tokens"]
    assert "".join(token["text"] for token in details["tokens"]) == whole["generated_text"]
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert events[-1]["details"]["finish_reason"] == details["finish_reason"]
    expected = said(prompt, length)
    assert expected.startswith(whole["generated_text"])
    if details["finish_reason"] == "stop_sequence":
        assert whole["generated_text"].endswith(tuple(stops))
    else:
        assert whole["generated_text"] == expected


async def test_how_answers_end() -> None:
    async with start_server(next_token=recite("Hello there!", prompt_len=2)) as server:
        ended = await generate(server, "ab", max_new_tokens=50, details=True)
        assert ended["generated_text"] == "Hello there!"
        assert ended["details"]["finish_reason"] == "eos_token"
        assert ended["details"]["generated_tokens"] == 13
        last = ended["details"]["tokens"][-1]
        assert (last["id"], last["text"], last["special"]) == (EOS_ID, "</s>", True)
        stopped = await generate(server, "ab", max_new_tokens=50, details=True, stop=["the", "nothing"])
        assert stopped["generated_text"] == "Hello the"  # the stop string is part of the answer
        assert stopped["details"]["finish_reason"] == "stop_sequence"
        events = await streamed(server, "ab", max_new_tokens=50)
        assert events[-1]["token"]["special"]
        assert events[-1]["generated_text"] == "Hello there!"


async def test_an_unfinished_character_before_the_end() -> None:
    async with start_server(next_token=recite("a好".encode()[:-1], prompt_len=2)) as server:
        answer = await generate(server, "ab", details=True)
        assert answer["generated_text"] == "a\ufffd"
        texts = [token["text"] for token in answer["details"]["tokens"] if not token["special"]]
        assert "".join(texts) == "a\ufffd"
        assert [event["token"] for event in await streamed(server, "ab")] == answer["details"]["tokens"]


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0),
        ({"do_sample": False}, 0),
        ({"do_sample": None, "temperature": None}, 0),
        ({"temperature": 1.0}, 0),
        ({"do_sample": True}, 1),
        ({"temperature": 0.5}, 0.5),
        ({"do_sample": False, "temperature": 0.5}, 0.5),
        ({"top_k": 5}, 1),
        ({"top_p": 0.9}, 1),
        ({"do_sample": True, "temperature": 1e-9}, 0),
    ],
)
async def test_when_it_samples(parameters: dict[str, Any], temperature: float) -> None:
    async with start_server() as server:
        server.rig.generator.default_params.update(temperature=0.3, top_k=40)  # other endpoints' defaults
        answer = await generate(server, max_new_tokens=1, details=True, **parameters)
        sampling = sampling_of(server)
        assert sampling.temperature == temperature
        assert sampling.top_k == parameters.get("top_k", 0)
        assert (answer["details"]["seed"] is None) == (temperature == 0)


async def test_parameters_reach_the_engine(server: Server) -> None:
    given: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "frequency_penalty": -0.5,
        "seed": 2**64 - 1,
    }
    answer = await generate(server, max_new_tokens=2, details=True, **given)
    sampling = sampling_of(server)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 7, 0.9)
    assert (sampling.repetition_penalty, sampling.frequency_penalty) == (1.2, -0.5)
    assert answer["details"]["seed"] == 2**64 - 1


async def test_truncate_keeps_the_last_tokens() -> None:
    async with start_server() as server:
        server.rig.generator.tokenizer._prefix = [BOS_ID]
        for truncate, kept in ((3, [101, 102, 103]), (100, [BOS_ID, *b"abcdefg"])):
            answer = await generate(
                server,
                "abcdefg",
                max_new_tokens=1,
                truncate=truncate,
                decoder_input_details=True,
                return_full_text=True,
            )
            assert [token["id"] for token in answer["details"]["prefill"]] == kept
            assert answer["generated_text"].startswith("abcdefg")


async def test_a_prompt_that_the_client_rendered(server: Server) -> None:
    rendered = "<|im_start|>user\nHi<|im_end|>\n"
    ids = [IM_START_ID, *b"user\nHi", IM_END_ID, 10]
    for field, expected in (
        ({}, ids),
        ({"parse_special": True}, ids),
        ({"parse_special": False}, list(rendered.encode())),
    ):
        parameters = {"max_new_tokens": 2, "details": True, "return_full_text": True, **field}
        whole = await generate(server, rendered, decoder_input_details=True, **parameters)
        assert [token["id"] for token in whole["details"]["prefill"]] == expected
        assert whole["generated_text"].startswith(rendered)
        body = {"inputs": rendered, "parameters": parameters}
        for path, stream in (("/generate_stream", {}), ("/", {"stream": True})):
            answer = await server.post(path, {**body, **stream})
            last = json.loads(answer.text.splitlines()[-2].removeprefix("data:"))
            assert last["details"]["input_length"] == int(answer.headers["x-prompt-tokens"]) == len(expected)
            assert last["generated_text"] == whole["generated_text"]
        (root,) = (await server.post("/", body)).json()
        assert root["generated_text"] == whole["generated_text"]
    cut = await generate(server, rendered, max_new_tokens=1, truncate=2, decoder_input_details=True)
    assert [(token["id"], token["text"]) for token in cut["details"]["prefill"]] == [
        (IM_END_ID, "<|im_end|>"),
        (10, "\n"),
    ]


async def test_where_parse_special_belongs(shared_server: Server) -> None:
    misplaced = await shared_server.post("/generate", {"inputs": "a", "parse_special": False})
    assert misplaced.status_code == 422
    assert "parse_special" in misplaced.json()["error"]


async def test_a_control_token_as_stop_string() -> None:
    async with start_server(next_token=lambda context: IM_END_ID if len(context) == 5 else 97) as server:
        whole = await generate(server, "xy", details=True, stop=["<|im_end|>"])
        events = await streamed(server, "xy", details=True, stop=["<|im_end|>"])
    assert (whole["generated_text"], whole["details"]["finish_reason"]) == ("aaa", "stop_sequence")
    assert [event["token"] for event in events] == whole["details"]["tokens"]
    assert events[-1]["token"]["text"] == "<|im_end|>"
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"
    assert events[-1]["generated_text"] == "aaa"


async def test_headers(server: Server) -> None:
    answer = await server.post("/generate", {"inputs": INPUTS, "parameters": {"max_new_tokens": 30}})
    headers = answer.headers
    times = [int(headers[f"x-{name}"]) for name in ("queue-time", "inference-time", "time-per-token", "total-time")]
    assert all(0 <= each <= times[-1] for each in times)
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == (str(len(INPUTS)), "30")
    assert headers["x-accel-buffering"] == "no"
    assert "decode;dur=" in headers["server-timing"]
    stream = await server.post("/generate_stream", {"inputs": INPUTS, "parameters": {"max_new_tokens": 30}})
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["x-prompt-tokens"] == str(len(INPUTS))
    assert stream.headers["x-accel-buffering"] == "no"
    assert "x-queue-time" in stream.headers
    assert "x-total-time" not in stream.headers


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": ["a"]}, "inputs"),
        ({"inputs": "a", "parameters": []}, "parameters"),
        ({"inputs": "a", "max_new_tokens": 5}, "max_new_tokens"),
        *(
            ({"inputs": "a", "parameters": {name: value}}, name)
            for name, value in [
                ("max_new_tokens", 0),
                ("max_new_tokens", 2000),
                ("max_tokens", 5),
                ("n_predict", 5),
                ("temperature", 0),
                ("temperature", "1"),
                ("top_k", 0),
                ("top_p", 0),
                ("top_p", 1.1),
                ("repetition_penalty", 0),
                ("frequency_penalty", -3),
                ("seed", -1),
                ("stop", "a"),
                ("stop", [""]),
                ("stop", ["a"] * 17),
                ("truncate", 0),
                ("top_n_tokens", 21),
                ("watermark", True),
                ("grammar", {"type": "xml", "value": "a"}),
                ("adapter_id", "x"),
                ("best_of", 2),
            ]
        ),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_refusals_are_flat(shared_server: Server, path: str, body: dict[str, Any], named: str) -> None:
    answer = await shared_server.post(path, body)
    assert answer.status_code == 422, answer.text
    content = answer.json()
    assert list(content) == ["error", "error_type"]
    assert content["error_type"] == "validation"
    assert (named if named != "max_new_tokens" else "tokens") in content["error"]


async def test_a_stream_cannot_have_the_inputs_details(shared_server: Server) -> None:
    body = {"inputs": "a", "parameters": {"decoder_input_details": True}}
    answer = await shared_server.post("/generate_stream", body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


async def test_what_asks_for_nothing_passes_and_the_unknown_is_named_back(shared_server: Server) -> None:
    nothing = {"typical_p": 1.0, "watermark": False, "grammar": None, "adapter_id": None, "best_of": 1}
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1, **nothing}}
    answer = await shared_server.post("/generate", body)
    assert answer.status_code == 200
    assert "x-ignored-params" not in answer.headers
    unknown = {"inputs": "a", "stream": False, "parameters": {"max_new_tokens": 1, "what": 1}}
    answer = await shared_server.post("/generate", unknown)
    assert answer.headers["x-ignored-params"] == "stream, what"
    typical = {"inputs": "a", "parameters": {"max_new_tokens": 1, "typical_p": 0.5}}
    answer = await shared_server.post("/generate?strict=true", typical)
    assert (answer.status_code, answer.headers["x-ignored-params"]) == (200, "typical_p")
    refused = await shared_server.post("/generate?strict=true", unknown)
    assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")


async def test_every_error_is_flat() -> None:
    async with start_server(ApiSettings(max_body_bytes=500), max_num_seqs=1, max_queue=1, delay=0.005) as server:
        large = await server.post("/generate", {"inputs": "a" * 500})
        assert (large.status_code, large.json()["error_type"]) == (413, "validation")
        wrong = await server.http.get("/generate")
        assert (wrong.status_code, wrong.json()["error_type"]) == (405, "validation")
        body = {"inputs": "a", "parameters": {"max_new_tokens": 300}}
        posted = [asyncio.create_task(server.post("/generate", body)) for _ in range(2)]
        await until(lambda: server.rig.client.in_flight == 2)
        full = await server.post("/generate_stream", body)
        assert (full.status_code, full.json()["error_type"]) == (429, "overloaded")
        assert int(full.headers["retry-after"]) >= 1
        assert server.rig.runner is not None
        server.rig.runner.row_error = lambda *_: "the logits are not finite"
        for answer in await asyncio.gather(*posted):
            assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
        server.rig.generator.tokenizer.encode = lambda *_, **__: 1 / 0  # type: ignore[method-assign,assignment]
        fault = await server.post("/generate", {"inputs": "a"})
        assert (fault.status_code, fault.json()["error_type"]) == (500, "internal")
    async with start_server_without_engine() as idle:
        loading = await idle.post("/generate", {"inputs": "a"})
        assert (loading.status_code, loading.json()["error_type"]) == (503, "unavailable")
        assert loading.headers["retry-after"]


async def test_a_failing_stream_ends_with_a_flat_error() -> None:
    async with start_server(delay=0.005) as server:
        assert server.rig.runner is not None
        server.rig.runner.row_error = lambda _, row: "the logits are not finite" if row.start == 20 else None
        events = await streamed(server, max_new_tokens=100)
        assert list(events[-1]) == ["error", "error_type"]
        assert events[-1]["error_type"] == "generation"
        assert [event["generated_text"] for event in events[:-1]] == [None] * (len(events) - 1)
        assert len(server.rig.ledger.records) == 1
        assert server.rig.ledger.records[0].endpoint == "/generate_stream"


async def test_a_cancelled_stream_ends_with_a_flat_error() -> None:
    async with start_server(delay=0.005) as server:
        headers = {"X-Request-Id": "mine"}
        body = {"inputs": "a", "parameters": {"max_new_tokens": 400}}
        async with server.http.stream("POST", "/generate_stream", json=body, headers=headers) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert (await server.http.delete("/v1/requests/mine")).json()["status"] == "cancelled"
            rest = [line async for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data:")) == {
            "error": "The request was cancelled.",
            "error_type": "generation",
        }


async def test_the_root_answers_either_way(server: Server) -> None:
    body = {"inputs": INPUTS, "parameters": {"max_new_tokens": 5, "details": True}}
    whole = await server.post("/", body)
    assert whole.json() == [await generate(server, max_new_tokens=5, details=True)]
    assert whole.headers["x-generated-tokens"] == "5"
    assert (await server.post("/", {**body, "stream": False})).json() == whole.json()
    stream = await server.post("/", {**body, "stream": True})
    assert stream.text == (await server.post("/generate_stream", body)).text
    assert {record.endpoint for record in server.rig.ledger.records} == {"/", "/generate", "/generate_stream"}


async def test_the_root_refuses_in_the_same_shape(shared_server: Server) -> None:
    for body in ({}, {"inputs": "a", "stream": "yes"}, {"inputs": "a", "stream": True, "timeout": 0}):
        answer = await shared_server.post("/", body)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


async def test_info() -> None:
    async with start_server(ApiSettings(max_stop=3), max_num_seqs=2, max_queue=5) as server:
        info = (await server.http.get("/info")).json()
        facts = server.service.models.default.info()
        assert (info["model_id"], info["model_dtype"]) == ("fake-model", facts.dtype)
        assert (info["max_concurrent_requests"], info["max_stop_sequences"]) == (7, 3)
        assert info["max_total_tokens"] == info["max_input_tokens"] + 1 == server.rig.generator.max_model_len
        assert info["version"] == __version__
        longest = {"inputs": "a" * info["max_input_tokens"], "parameters": {"max_new_tokens": 1}}
        assert (await server.post("/generate", longest)).status_code == 200
        longest["inputs"] += "a"
        assert (await server.post("/generate", longest)).status_code == 422
    async with start_server_without_engine() as idle:
        loading = await idle.http.get("/info")
        assert (loading.status_code, loading.json()["error_type"]) == (503, "unavailable")


async def test_a_time_limit() -> None:
    async with start_server(delay=0.01) as server:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 400}, "timeout": 0.05}
        for path in ("/generate", "/"):
            answer = await server.post(path, body)
            assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
        stream = await server.post("/generate_stream", body)
        assert json.loads(stream.text.splitlines()[-2].removeprefix("data:"))["error_type"] == "generation"
        assert (await server.post("/generate", {**body, "timeout": -1})).status_code == 422
        unhurried = {"inputs": "a", "parameters": {"max_new_tokens": 2}, "timeout": 60}
        assert (await server.post("/generate", unhurried)).status_code == 200
