"""Ollama's routes over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.api.service import ApiSettings
from app.version import __version__
from tests.api.conftest import Server, start_server, start_server_without_engine
from tests.api.openai.test_completions import said
from tests.api.openai.test_infill import make_infill
from tests.serving.rig import MODEL, recite

QUESTION = [{"role": "user", "content": "Hi"}]
PROMPT_LEN = 1 + len("user\nHi") + 1 + 1 + 1 + len("assistant\n")
TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


async def chat(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": QUESTION, "options": {"num_predict": 12}, **fields}
    return await server.post("/api/chat", body)


async def generate(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "prompt": "Hi", "options": {"num_predict": 12}, **fields}
    return await server.post("/api/generate", body)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_stream_says_what_the_whole_answer_says(shared_server: Server) -> None:
    whole = (await chat(shared_server, stream=False)).json()
    assert whole["message"] == {"role": "assistant", "content": said(PROMPT_LEN, 12)}
    stream = await chat(shared_server)  # streams are the default
    assert stream.headers["content-type"] == "application/x-ndjson"
    *pieces, last = lines(stream)
    assert "".join(piece["message"]["content"] for piece in pieces) == whole["message"]["content"]
    assert all(piece["done"] is False and "done_reason" not in piece for piece in pieces)
    for end in (whole, last):
        assert (end["model"], end["done"], end["done_reason"]) == (MODEL, True, "length")
        assert (end["prompt_eval_count"], end["eval_count"]) == (PROMPT_LEN, 12)
        assert all(isinstance(end[name], int) and end[name] >= 0 for name in TIMES)
    assert last["message"] == {"role": "assistant", "content": ""}


async def test_prompts_are_a_turn_or_taken_as_they_are(shared_server: Server) -> None:
    *pieces, last = lines(await generate(shared_server))
    assert "".join(piece["response"] for piece in pieces) == said(PROMPT_LEN, 12)
    assert (last["response"], last["prompt_eval_count"]) == ("", PROMPT_LEN)
    raw = (await generate(shared_server, raw=True, stream=False)).json()
    assert (raw["response"], raw["prompt_eval_count"]) == (said(2, 12), 2)
    system = (await generate(shared_server, system="Be brief.", stream=False)).json()
    assert system["prompt_eval_count"] > PROMPT_LEN


@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:latest"])
async def test_names_may_have_a_tag(shared_server: Server, name: str) -> None:
    assert (await chat(shared_server, model=name, stream=False)).json()["model"] == name
    shown = await shared_server.post("/api/show", {"model": name})
    assert shown.status_code == 200
    assert (await shared_server.post("/api/show", {"name": name})).status_code == 200


async def test_a_suffix_follows_what_is_filled_in() -> None:
    async with start_server() as server:
        assert "insert" not in (await server.post("/api/show", {"model": MODEL})).json()["capabilities"]
        make_infill(server)
        filled = (await generate(server, prompt="ab", suffix="cd", stream=False)).json()
        assert (filled["response"], filled["prompt_eval_count"]) == (said(7, 12), 7)
        assert "insert" in (await server.post("/api/show", {"model": MODEL})).json()["capabilities"]


async def test_how_answers_end() -> None:
    async with start_server(next_token=recite("Hello there!", prompt_len=PROMPT_LEN)) as server:
        ended = (await chat(server, stream=False, options={})).json()
        assert (ended["message"]["content"], ended["done_reason"]) == ("Hello there!", "stop")
        stopped = (await chat(server, stream=False, options={"stop": [" the"]})).json()
        assert (stopped["message"]["content"], stopped["done_reason"]) == ("Hello", "stop")
        one = (await chat(server, stream=False, options={"stop": "re!"})).json()
        assert one["message"]["content"] == "Hello the"


@pytest.mark.parametrize(
    ("most", "made"), [(3, 3), (-1, 512 - PROMPT_LEN), (-2, 512 - PROMPT_LEN), (9999, 512 - PROMPT_LEN)]
)
async def test_most_tokens(shared_server: Server, most: int, made: int) -> None:
    answer = (await chat(shared_server, stream=False, options={"num_predict": most})).json()
    assert (answer["eval_count"], answer["done_reason"]) == (made, "length")


async def test_a_context_may_be_asked_for(shared_server: Server) -> None:
    bounded = (await chat(shared_server, stream=False, options={"num_ctx": PROMPT_LEN + 5})).json()
    assert bounded["eval_count"] == 5
    large = await chat(shared_server, options={"num_ctx": 4096})
    assert large.status_code == 400
    assert large.json() == {"error": "options.num_ctx: a context of 4096 tokens is asked for, and there are 512."}
    small = await chat(shared_server, options={"num_ctx": 4})
    assert small.status_code == 400
    assert "options.num_ctx allows no more" in small.json()["error"]


async def test_options_are_heeded_and_others_named_back() -> None:
    async with start_server() as server:
        options = {
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.9,
            "min_p": 0.1,
            "repeat_penalty": 1.2,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.4,
            "seed": 5,
            "num_predict": 1,
            "num_gpu": 1,
            "mirostat": 0,
        }
        answer = await chat(server, options=options, keep_alive="5m", truncate=True)
        named = set(answer.headers["x-ignored-params"].split(", "))
        assert named == {"options.num_gpu", "options.mirostat", "keep_alive", "truncate"}
        assert server.rig.runner is not None
        sampling = server.rig.runner.steps[0].slots[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 7, 0.9, 0.1)
        assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.2, 0.3, 0.4)


async def test_logprobs_go_with_their_text(shared_server: Server) -> None:
    whole = (await generate(shared_server, stream=False, logprobs=True, top_logprobs=2)).json()
    assert len(whole["logprobs"]) == 12
    assert all(len(token["top_logprobs"]) == 2 for token in whole["logprobs"])
    assert b"".join(bytes(token["bytes"]) for token in whole["logprobs"]).startswith(whole["response"].encode()[:8])
    *pieces, _ = lines(await generate(shared_server, logprobs=True))
    streamed = [token for piece in pieces for token in piece.get("logprobs", [])]
    assert [token["logprob"] for token in streamed] == [token["logprob"] for token in whole["logprobs"]]
    assert "top_logprobs" not in streamed[0]


async def test_nothing_asked_says_that_the_model_is_loaded(shared_server: Server) -> None:
    loaded = lines(await chat(shared_server, messages=[]))
    assert len(loaded) == 1
    assert (loaded[0]["done"], loaded[0]["done_reason"]) == (True, "load")
    assert loaded[0]["message"] == {"role": "assistant", "content": ""}
    generated = (await shared_server.post("/api/generate", {"model": MODEL, "stream": False})).json()
    assert (generated["response"], generated["done_reason"]) == ("", "load")


async def test_a_last_turn_of_the_assistants_is_gone_on_with(shared_server: Server) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": "Well, "}]
    answer = (await chat(shared_server, messages=turns, stream=False)).json()
    assert answer["message"]["content"] == said(PROMPT_LEN + len("Well, "), 12)


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/api/chat", {"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["AA=="]}]}, "messages[0].images"),
        ("/api/chat", {"messages": "Hi"}, "messages"),
        ("/api/chat", {"messages": QUESTION, "options": {"temperature": -1}}, "options.temperature"),
        ("/api/chat", {"messages": QUESTION, "options": {"stop": ["x"] * 17}}, "options.stop"),
        ("/api/chat", {"messages": QUESTION, "tools": [{"type": "function"}]}, "tools[0].function"),
        ("/api/chat", {"messages": QUESTION, "top_logprobs": 2}, "top_logprobs"),
        ("/api/chat", {"messages": QUESTION, "format": "xml"}, "format"),
        ("/api/chat", {"messages": QUESTION, "format": {"type": "sometimes"}}, "format"),
        ("/api/chat", {"messages": QUESTION, "logprobs": True, "top_logprobs": 999}, "top_logprobs"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x" * 600}]}, "maximum context length"),
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "a", "context": [1, 2]}, "context"),
        ("/api/generate", {"prompt": "a", "images": ["AA=="]}, "images"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "system"),
        ("/api/embed", {"input": "a"}, "embeddings"),
    ],
)
async def test_refusals_name_the_field(shared_server: Server, path: str, fields: dict[str, Any], words: str) -> None:
    answer = await shared_server.post(path, {"model": MODEL, **fields})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


async def test_errors_have_its_shape() -> None:
    async with start_server() as server:
        unknown = await chat(server, model="nobody")
        assert (unknown.status_code, list(unknown.json())) == (404, ["error"])
        for path in ("/api/pull", "/api/blobs/sha256:0"):
            assert list((await server.post(path, {"model": "x"})).json()) == ["error"]
        assert (await server.http.get("/api/chat")).json()["error"]
    async with start_server_without_engine() as server:
        assert (await chat(server)).status_code == 503
        assert (await server.http.get("/api/ps")).json() == {"models": []}
        assert (await server.http.get("/api/tags")).json()["models"][0]["size"] == 0


async def test_a_failure_in_mid_stream_is_the_last_line() -> None:
    async with start_server(delay=0.002) as server:
        body = {"messages": QUESTION, "options": {"num_predict": 400}}
        async with server.http.stream("POST", "/api/chat", json=body) as answer:
            received = answer.aiter_lines()
            await anext(received)
            assert server.rig.runner is not None
            server.rig.runner.fail_collect = lambda _step: True
            last = [line async for line in received][-1]
        assert list(json.loads(last)) == ["error"]


async def test_silence_is_filled_with_what_no_client_sees() -> None:
    async with start_server(ApiSettings(keepalive_interval=0.05), delay=0.3) as server:
        answer = await chat(server, options={"num_predict": 1})
        assert answer.text.startswith("  ")
        assert len(lines(answer)) == 2


async def test_what_is_served(shared_server: Server) -> None:
    http = shared_server.http
    (model,) = (await http.get("/api/tags")).json()["models"]
    assert (model["name"], model["model"]) == (f"{MODEL}:latest", f"{MODEL}:latest")
    assert len(model["digest"]) == 64
    assert model["details"]["parameter_size"]
    (running,) = (await http.get("/api/ps")).json()["models"]
    assert (running["digest"], running["context_length"]) == (model["digest"], 512)
    shown = (await http.post("/api/show", json={"model": MODEL})).json()
    assert "completion" in shown["capabilities"]
    family = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{family}.context_length"] == 512
    assert "im_start" in shown["template"]
    assert (await http.post("/api/show", json={"model": "nobody"})).status_code == 404
    version = (await http.get("/api/version")).json()["version"]
    assert version.endswith(f"+tuili.{__version__}")
    assert (await http.get("/")).text == "Ollama is running"
    assert (await http.head("/")).status_code == 200
