"""What is refused, how, and that nothing a client sends is ever a fault of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.service import ApiSettings
from tests.api.conftest import TIMEOUT, Server, start_server, start_server_without_engine
from tests.serving.rig import MODEL, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, its shape checked."""
    body = answer.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 100.1, "temperature"),
        ("temperature", -0.1, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", True, "temperature"),
        ("temperature", [], "temperature"),
        ("top_p", -0.1, "top_p"),
        ("top_p", 1.5, "top_p"),
        ("top_k", -2, "top_k"),
        ("min_p", 2, "min_p"),
        ("presence_penalty", 2.5, "presence_penalty"),
        ("frequency_penalty", -3, "frequency_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("max_completion_tokens", 0, "max_completion_tokens"),
        ("max_completion_tokens", -2, "max_completion_tokens"),
        ("max_tokens", -2, "max_tokens"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 1.5, "max_tokens"),
        ("max_new_tokens", "16", "max_new_tokens"),
        ("n_predict", -2, "n_predict"),
        ("max_output_tokens", 16, "max_output_tokens"),
        ("num_predict", 16, "num_predict"),
        ("max_tokens", "16", "max_tokens"),
        ("min_tokens", 99, "min_tokens"),
        ("n", 0, "n"),
        ("n", 17, "n"),
        ("seed", 2**64, "seed"),
        ("seed", "1", "seed"),
        ("stop", "a" * 1025, "stop"),
        ("stop", ["a", ""], "stop[1]"),
        ("stop", ["a"] * 17, "stop"),
        ("stop", 7, "stop"),
        ("stop_token_ids", [260], "stop_token_ids"),
        ("stop_token_ids", [-1], "stop_token_ids[0]"),
        ("logit_bias", {"260": 1}, "logit_bias"),
        ("logit_bias", {"a": 1}, "logit_bias"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {"9" * 5000: 1}, "logit_bias"),
        ("logit_bias", {"1": 101}, "logit_bias.1"),
        ("logit_bias", {str(i): 0 for i in range(1025)}, "logit_bias"),
        ("stream", "yes", "stream"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("model", 5, "model"),
        ("best_of", 0, "best_of"),
        ("best_of", 17, "best_of"),
        ("truncate_prompt_tokens", 0, "truncate_prompt_tokens"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_bad_fields_are_named(shared_server: Server, path: str, field: str, value: object, param: str) -> None:
    prompt: dict[str, object] = {"messages": MESSAGES} if path == CHAT else {"prompt": "Hi"}
    answer = await shared_server.post(path, {**prompt, "max_tokens": 20, field: value})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == param
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "Hi"}, "messages", "invalid_type"),
        ({"messages": ["Hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [*MESSAGES, {"role": "user", "content": [{"type": "text"}]}]},
            "messages[1].content[0].text",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"messages": MESSAGES, "logprobs": 1}, "logprobs", "invalid_type"),
    ],
)
async def test_bad_chats(shared_server: Server, body: object, param: str, code: str) -> None:
    answer = await shared_server.post(CHAT, body)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": [260]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[1], [1, 2**40]]}, "prompt[1][1]"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 3}, "n"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
    ],
)
async def test_bad_completions(shared_server: Server, body: object, param: str) -> None:
    answer = await shared_server.post(COMPLETIONS, body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"prompt": "a", "foo": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 5000,
    ],
)
async def test_malformed_bodies(shared_server: Server, content: bytes) -> None:
    answer = await shared_server.http.post(COMPLETIONS, content=content)
    assert answer.status_code == 400
    assert error_of(answer)["code"] in ("invalid_json", "invalid_type", "invalid_value")


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", None])
async def test_programs_may_call_json_what_they_like(shared_server: Server, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = await shared_server.http.post(COMPLETIONS, content=b'{"prompt": "a", "max_tokens": 1}', headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate", "/", "/tokenize", "/detokenize"])
async def test_forms_in_parts_are_415(shared_server: Server, path: str) -> None:
    answer = await shared_server.http.post(path, data={"prompt": "a"}, files={"file": b"x"})
    assert answer.status_code == 415
    if path in ("/generate", "/"):
        assert answer.json()["error_type"] == "validation"
    else:
        assert error_of(answer)["code"] == "unsupported_media_type"


async def test_context_length_is_refused_before_a_stream_begins(shared_server: Server) -> None:
    for body in ({"prompt": "x" * 600}, {"prompt": "x", "max_tokens": 600}, {"prompt": [1] * 512, "max_tokens": 1}):
        answer = await shared_server.post(COMPLETIONS, {**body, "stream": True})
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "context_length_exceeded"
    long_chat = await shared_server.post(CHAT, {"messages": [{"role": "user", "content": "x" * 600}]})
    assert error_of(long_chat)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "body", "requested"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 99_999}]}, "more than 512 tokens in the messages alone"),
        (CHAT, {"messages": MESSAGES, "max_completion_tokens": 600}, ", 600 in the completion)"),
        (COMPLETIONS, {"prompt": [97] * 600}, "600 tokens in the prompt alone"),
        (COMPLETIONS, {"prompt": "x" * 512}, "512 tokens in the prompt alone"),
        (COMPLETIONS, {"prompt": "x" * 512, "echo": True, "max_tokens": 0}, "512 tokens in the prompt alone"),
        (COMPLETIONS, {"prompt": "xy", "max_tokens": 600}, "602 tokens (2 in the prompt, 600 in the completion)"),
    ],
)
async def test_the_context_is_named_in_openais_words(
    shared_server: Server, path: str, body: dict[str, object], requested: str
) -> None:
    """LiteLLM, and what is built on it, knows this error by its text."""
    error = error_of(await shared_server.post(path, body))
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 512 tokens. However, you requested ")
    assert requested in error["message"]
    assert error["param"] == ("messages" if path == CHAT else "prompt")
    assert "max_tokens" not in error["message"]


async def test_the_default_length_of_a_completion_is_cut_to_what_fits(shared_server: Server) -> None:
    for length in (510, 511):
        answer = await shared_server.post(COMPLETIONS, {"prompt": [97] * length, "ignore_eos": True})
        assert answer.json()["usage"]["completion_tokens"] == 512 - length
    asked = await shared_server.post(COMPLETIONS, {"prompt": [97] * 510, "max_tokens": 16})
    assert error_of(asked)["code"] == "context_length_exceeded"


SECRET = "a secret nobody may log"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (COMPLETIONS, {"prompt": SECRET, "temperature": "x"}, (COMPLETIONS, 400, "invalid_type", "temperature")),
        (COMPLETIONS, {"prompt": SECRET, "model": "nobody"}, (COMPLETIONS, 404, "model_not_found", "model")),
        (COMPLETIONS, {"prompt": SECRET, "max_tokens": 600}, (COMPLETIONS, 400, "context_length_exceeded", "prompt")),
        (COMPLETIONS, {"prompt": SECRET, "n": 17}, (COMPLETIONS, 400, "invalid_value", "n")),
        (COMPLETIONS, {SECRET: 1, "prompt": 5}, (COMPLETIONS, 400, "invalid_type", "prompt")),
        (CHAT, SECRET, (CHAT, 400, "invalid_type", None)),
        ("/generate", {"inputs": SECRET, "timeout": 0}, ("/generate", 422, "invalid_value", "timeout")),
        ("/tokenize", {"prompt": SECRET, "model": "nobody"}, ("/tokenize", 404, "model_not_found", "model")),
        ("/no/such%0Aroute?api_key=abc", {}, ("/no/such?route", 404, "unknown_url", None)),
        ("/v1/models", {}, ("/v1/models", 405, "method_not_allowed", None)),
    ],
)
async def test_what_is_refused_leaves_one_log_line(
    server: Server, path: str, body: object, expected: tuple[object, ...]
) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        answer = await server.post(path, body, headers={"X-Request-Id": "find-me"})
    (entry,) = logs
    assert entry["event"] == "request refused"
    assert answer.status_code == expected[1]
    assert (entry["endpoint"], entry["status"], entry["error_code"], entry["param"]) == expected
    assert entry["request_id"].endswith("find-me")
    assert SECRET not in str(entry)


async def test_routes_and_methods(shared_server: Server) -> None:
    for path in ("/v1", "/v1/completions/", "/v2/completions", "/v1//completions", "/%2e%2e/etc/passwd"):
        answer = await shared_server.post(path, {})
        assert answer.status_code == 404, path
        assert error_of(answer)["code"] == "unknown_url"
    wrong = await shared_server.http.get(COMPLETIONS)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"
    assert error_of(wrong)["message"] == f"{COMPLETIONS} does not answer GET, but POST."
    for path, methods in (("/v1/requests/x", "DELETE, GET, HEAD"), ("/livez", "GET, HEAD")):
        answer = await shared_server.post(path, {})
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/generate-stream", "/generate_stream"),
        ("/healthz", "/health"),
        ("/v1/model/x", "/v1/models/"),
        ("/nothing/like/this", None),
        ("/" + "x" * 5000, None),
    ],
)
async def test_an_unknown_path_is_told_what_is_near_and_where_all_are(
    shared_server: Server, path: str, near: str | None
) -> None:
    message = error_of(await shared_server.http.get(path))["message"]
    assert ("did you mean" in message) == (near is not None)
    assert near is None or near in message
    assert message.endswith("; /docs lists all that there are.")


async def test_an_unknown_path_of_a_protocol_has_its_shape(shared_server: Server) -> None:
    answer = await shared_server.post("/api/chats", {})
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("There is no route /api/chats (did you mean /api/chat?)")


@pytest.mark.parametrize(
    "path", ["/v1/models", f"/v1/models/{MODEL}", "/metrics", "/openapi.json", "/docs", "/api/tags", "/info", "/livez"]
)
async def test_head_is_a_get_without_a_body(shared_server: Server, path: str) -> None:
    got, headed = await shared_server.http.get(path), await shared_server.http.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"") == (200, b"")
    assert headed.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # which has counted the first one
        assert headed.headers["content-length"] == got.headers["content-length"]


async def test_head_where_there_is_no_get(shared_server: Server) -> None:
    await shared_server.http.head("/v1/models")
    assert 'method="HEAD",route="/v1/models",status="200"' in (await shared_server.http.get("/metrics")).text
    assert (await shared_server.http.head(COMPLETIONS)).status_code == 405
    assert (await shared_server.http.head("/nowhere")).status_code == 404


async def test_large_bodies(shared_server: Server) -> None:
    async with start_server(ApiSettings(max_body_bytes=1000)) as server:
        body = json.dumps({"prompt": "a", "max_tokens": 1, "padding": "x" * 1000}).encode()

        async def in_pieces() -> Any:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        for content in (body, in_pieces()):
            answer = await server.http.post(COMPLETIONS, content=content)
            assert answer.status_code == 413
            assert error_of(answer)["code"] == "request_too_large"
        assert (await server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1})).status_code == 200


async def test_the_sdk_raises_its_own_classes(shared_server: Server) -> None:
    create: Any = shared_server.openai.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        await create(model="nobody", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        await create(model=MODEL, messages=MESSAGES, temperature=300)
    assert bad.value.param == "temperature"
    assert bad.value.request_id


async def test_a_full_server_is_429_and_then_serves_again() -> None:
    async with start_server(max_num_seqs=1, max_queue=1, delay=0.01) as server:
        body = {"prompt": "x", "max_tokens": 40, "n": 2}
        running = asyncio.create_task(server.post(COMPLETIONS, body))
        await until(lambda: server.rig.client.in_flight == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            await server.openai.completions.create(model=MODEL, prompt="y", max_tokens=1)
        assert caught.value.code == "overloaded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert (await server.http.get("/readyz")).status_code == 200  # a full queue does not flip readiness
        assert (await running).status_code == 200
        assert (await server.post(COMPLETIONS, {"prompt": "y", "max_tokens": 1})).status_code == 200


async def test_without_an_engine_everything_is_503() -> None:
    async with start_server_without_engine() as server:
        for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "x", "stream": True})):
            answer = await server.post(path, body)
            assert answer.status_code == 503
            assert error_of(answer)["type"] == "server_error"
            assert int(answer.headers["retry-after"]) >= 1
        assert "tuili_requests_refused_total" in (await server.http.get("/metrics")).text


async def test_time_limits_are_504() -> None:
    async with start_server(ApiSettings(default_timeout=0.05), delay=0.02) as server:
        answer = await server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 400})
        assert answer.status_code == 504
        assert error_of(answer)["code"] == "deadline_exceeded"


async def test_a_fault_of_the_server_tells_nothing(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(shared_server.rig.generator, "permit", fail)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        answer = await shared_server.post(COMPLETIONS, {"prompt": "x"}, headers={"X-Request-Id": "find-me"})
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert entry["exc_info"]
    assert entry["request_id"] == "find-me"
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"] == "find-me"
    error = error_of(answer)
    assert "find-me" in error["message"]
    assert "secret" not in answer.text
    assert (error["type"], error["code"]) == ("server_error", "internal_error")


@pytest.fixture(scope="module")
def sync_http(threaded_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=threaded_server.url, timeout=TIMEOUT) as client:
        yield client


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
FIELDS = """
    model messages prompt stream stream_options n temperature top_p top_k min_p presence_penalty frequency_penalty
    repetition_penalty logit_bias seed min_tokens max_tokens max_completion_tokens stop stop_token_ids ignore_eos
    logprobs top_logprobs echo best_of tools tool_choice response_format chat_template_kwargs cache_salt priority user
""".split()  # noqa: SIM905 - a list of so many is unreadable
PLAUSIBLE = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": JSON}),
            max_size=3,
        )
        | JSON,
        "prompt": st.text(max_size=20) | st.lists(st.integers(0, 300), max_size=5) | JSON,
    },
    optional={
        "max_tokens": st.integers(0, 8),
        "n": st.integers(0, 3),
        "temperature": st.floats(0, 2),
        "seed": st.integers(),
        "logprobs": st.integers(0, 3) | st.booleans(),
        "echo": st.booleans(),
        "stream": st.booleans(),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    },
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    path=st.sampled_from([CHAT, COMPLETIONS]),
    body=PLAUSIBLE | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6) | JSON,
)
def test_no_body_is_a_fault_of_the_server(sync_http: httpx.Client, path: str, body: object) -> None:
    answer = sync_http.post(path, content=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text)
    if answer.status_code != 200:
        error_of(answer)
