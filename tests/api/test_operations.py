"""Probes, metrics, models, request ids, the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from urllib.parse import quote

import pytest

from app.answers.answers import Answers
from app.api.protocols import protocol_of
from app.api.service import ApiSettings
from app.keys import parse_keys
from tests.api.conftest import Server, serve_rig, start_server, start_server_without_engine
from tests.fake_adapters import AdaptedRunner
from tests.serving.rig import MODEL, running

PROBES = ("/livez", "/readyz", "/startupz", "/health", "/ping")


async def _statuses(server: Server) -> dict[str, int]:
    answers = {path: await server.http.get(path) for path in PROBES}
    for answer in answers.values():
        body = answer.json()
        assert set(body) == {"status", "state", "reason"}
        assert (body["status"] == "ok") == (answer.status_code == 200) == (body["reason"] is None)
    return {path: answer.status_code for path, answer in answers.items()}


async def test_probes_through_a_life() -> None:
    async with start_server_without_engine() as server:
        loading = {"/livez": 200, "/readyz": 503, "/startupz": 503, "/health": 503, "/ping": 503}
        assert await _statuses(server) == loading
        assert (await server.http.get("/readyz")).json()["state"] == "loading"
        server.rig.client.fail("the weights are broken")
        assert set((await _statuses(server)).values()) == {503}
        assert (await server.http.get("/livez")).json()["reason"] == "the weights are broken"
    async with start_server() as server:
        assert set((await _statuses(server)).values()) == {200}
        server.service.draining = True
        draining = {"/livez": 200, "/readyz": 503, "/startupz": 200, "/health": 503, "/ping": 503}
        assert await _statuses(server) == draining
        assert (await server.http.get("/readyz")).json()["state"] == "draining"
        still = await server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
        assert still.status_code == 200  # readiness turns first
        server.rig.client.drain()
        assert await _statuses(server) == draining
        refused = await server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]


@pytest.mark.parametrize("path", PROBES)
async def test_probes_answer_head(path: str) -> None:
    async with start_server_without_engine() as server:
        server.service.draining = True
        got, headed = await server.http.get(path), await server.http.head(path)
        assert headed.status_code == got.status_code
        assert headed.content == b""
        assert headed.headers["content-length"] == got.headers["content-length"]


async def test_liveness_fails_only_when_a_stalled_engine_is_not_replaced(server: Server) -> None:
    served = server.service.models.default
    served.stall_limit = lambda: 60.0
    served.progress_age = lambda: 61.0
    assert (await server.http.get("/livez")).status_code == 200, "the supervisor has only just begun"
    served.progress_age = lambda: 120.0
    stalled = await server.http.get("/livez")
    assert stalled.status_code == 503
    assert "no step" in stalled.json()["reason"]


async def test_metrics(server: Server) -> None:
    answer = await server.post("/v1/completions", {"prompt": "x", "max_tokens": 7})
    usage = answer.json()["usage"]
    await server.http.get("/no/such/route")
    await server.http.get(f"/v1/models/{MODEL}")
    page = await server.http.get("/metrics")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    series = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"):
        assert f'vllm:{name}{{engine="0",model_name="{MODEL}"}}' in series
    label = f'{{engine="0",model_name="{MODEL}"}}'
    assert float(series[f"vllm:generation_tokens_total{label}"]) == usage["completion_tokens"] == 7
    assert float(series[f"vllm:prompt_tokens_total{label}"]) == usage["prompt_tokens"]
    assert float(series[f"vllm:time_to_first_token_seconds_count{label}"]) == 1
    served = 'tuili_http_requests_total{method="%s",route="%s",status="%s"}'
    assert series[served % ("POST", "/v1/completions", 200)] == "1.0"
    assert series[served % ("GET", "unmatched", 404)] == "1.0"
    assert not any(f"/v1/models/{MODEL}" in name for name in series)  # a template, no raw path


async def test_pages_and_the_document_count_as_their_own_routes(server: Server) -> None:
    for path in ("/", "/docs", "/page/icon.svg", "/page/none", "/openapi.json"):
        await server.http.get(path, headers={"accept": "text/html"})
    await server.http.head("/docs")
    page = (await server.http.get("/metrics")).text
    for route, method, status in (
        ("/", "GET", 200),
        ("/docs", "GET", 200),
        ("/docs", "HEAD", 200),
        ("/page/{name:path}", "GET", 200),
        ("/page/{name:path}", "GET", 404),
        ("/openapi.json", "GET", 200),
    ):
        assert f'tuili_http_requests_total{{method="{method}",route="{route}",status="{status}"}} 1.0' in page
    assert 'route="unmatched"' not in page


async def test_models() -> None:
    async with running() as rig, serve_rig(rig, names=(MODEL, "org/alias")) as server:
        rig.generator.default_params.update(temperature=0.3, top_k=40)
        await _names_are_served(server)


async def _names_are_served(server: Server) -> None:
    listed = await server.openai.models.list()
    assert [model.id for model in listed.data] == [MODEL, "org/alias"]
    body = (await server.http.get("/v1/models")).json()
    assert list(body["data"][1]) == [
        "id",
        "object",
        "created",
        "owned_by",
        "root",
        "parent",
        "max_model_len",
        "default_sampling",
        "via",
    ]
    assert body["data"][1]["root"] == MODEL
    assert body["data"][1]["default_sampling"] == {"temperature": 0.3, "top_k": 40}
    assert body["data"][1]["max_model_len"] == 512
    assert (await server.openai.models.retrieve("org/alias")).id == "org/alias"
    assert (await server.http.get("/v1/models/org%2Falias")).json() == body["data"][1]
    assert (await server.http.get("/v1/models/org/alias")).json() == body["data"][1]
    assert (await server.http.get("/v1/models/")).json() == body
    assert (await server.http.get("/v1/models/nobody")).json()["error"]["code"] == "model_not_found"
    answer = await server.openai.completions.create(model="org/alias", prompt="x", max_tokens=1)
    assert answer.model == "org/alias"
    absent = await server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
    assert absent.json()["model"] == MODEL


@pytest.mark.parametrize(
    "name", ["a b", "org/model v1.5", "50%", "a%2Fb", "what?#1", "模型/é", "org/sub/model:q4", "x+y"]
)
async def test_a_served_name_is_found_whatever_it_is(name: str) -> None:
    async with running() as rig, serve_rig(rig, names=(MODEL, name)) as server:
        server.rig.generator.default_params.update(temperature=0.3, top_k=40)
        card = (await server.http.get(f"/v1/models/{quote(name, safe='')}")).json()
        assert (card["id"], card["root"], card["object"]) == (name, MODEL, "model")
        assert card["default_sampling"] == {"temperature": 0.3, "top_k": 40}
        assert (await server.openai.models.retrieve(name)).id == name
        listed = (await server.http.get("/v1/models")).json()["data"]
        assert card in listed
        for path in (f"/models/{quote(name, safe='')}", f"/v1/models/{quote(name)}"):
            assert (await server.http.get(path)).json() == card


async def test_any_name_is_the_model_where_told() -> None:
    async with running() as rig, serve_rig(rig, any_name=True) as server:
        assert [model.id for model in (await server.openai.models.list()).data] == [MODEL]
        chat = await server.openai.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "Hi"}], max_tokens=1
        )
        assert chat.model == "gpt-4o"
        card = (await server.http.get("/v1/models/org/made-up")).json()
        assert (card["id"], card["root"]) == ("org/made-up", MODEL)
        assert (await server.post("/tokenize", {"prompt": "a", "model": "tgi"})).status_code == 200


@pytest.mark.parametrize("name", ["tgi", "dummy", "org/made-up"])
async def test_tgi_routes_take_any_name(shared_server: Server, name: str) -> None:
    body = {"inputs": "a", "model": name, "parameters": {"max_new_tokens": 1}}
    for path in ("/generate", "/generate_stream", "/"):
        answer = await shared_server.post(f"{path}?strict=true", body)
        assert answer.status_code == 200, path
        assert "x-ignored-params" not in answer.headers


async def test_paths_without_v1_are_those_with_it(server: Server) -> None:
    sdk = server.openai.with_options(base_url=server.url)
    assert [model.id async for model in await sdk.models.list()] == [MODEL]
    assert (await sdk.models.retrieve(MODEL)).id == MODEL
    assert (await sdk.completions.create(model=MODEL, prompt="a", max_tokens=1)).object == "text_completion"
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1, stream=True
    )
    assert {chunk.object async for chunk in stream} == {"chat.completion.chunk"}
    for path in ("/chat", "/model", "/completions/", "/v1/v1/models"):
        assert (await server.http.get(path)).json()["error"]["code"] == "unknown_url", path
    missing = await server.post("/embeddings", {"input": "a", "model": MODEL})
    assert "/v1/embeddings" in missing.json()["error"]["message"]
    page = (await server.http.get("/metrics")).text
    assert 'route="/v1/models/{model:path}"' in page
    assert 'route="/v1/chat/completions"' in page


@pytest.mark.parametrize("given", ["abc-1.2:3/x+y=@_", "A" * 128])
async def test_request_ids_are_honoured(shared_server: Server, given: str) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    answer = await shared_server.post("/v1/completions", body, headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == given
    assert answer.json()["id"] == f"cmpl-{given}"
    assert any(record.request_id.startswith(f"cmpl-{given}") for record in shared_server.rig.ledger.records)
    assert (await shared_server.http.get("/nope", headers={"X-Request-Id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "A" * 129, "a b", 'a"b', "a,b", "<x>"])
async def test_unsafe_request_ids_are_replaced(shared_server: Server, given: str) -> None:
    answer = await shared_server.http.get("/livez", headers={"X-Request-Id": given})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_two_clients_may_choose_the_same_id(shared_server: Server) -> None:
    body = {"prompt": "x", "max_tokens": 30}
    headers = {"X-Request-Id": "same"}
    answers = await asyncio.gather(*(shared_server.post("/v1/completions", body, headers=headers) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1


async def test_the_document_describes_every_route(shared_server: Server) -> None:
    document = (await shared_server.http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/api/chat",
        "/api/generate",
        "/api/ps",
        "/api/show",
        "/api/tags",
        "/api/version",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/requests/{request_id}",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/responses/{response_id}/input_items",
        "/tokenize",
        "/generate",
        "/generate_stream",
        "/",
        "/info",
        "/detokenize",
        "/tokenizer_info",
        "/v1/engine",
        "/v1/engine/live",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/metrics",
        *PROBES,
    }
    text = json.dumps(document)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert references <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in text  # errors have the protocol's shape
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert "200" in operation["responses"]
    page = await shared_server.http.get("/docs")
    assert page.status_code == 200


async def test_the_document_declares_keys_where_they_are_needed(shared_server: Server) -> None:
    assert "security" not in (await shared_server.http.get("/openapi.json")).text
    key = "some-key-0123456789"
    async with start_server(ApiSettings(api_keys=parse_keys([key]))) as server:
        document = (await server.http.get("/openapi.json", headers={"X-Api-Key": key})).json()
    assert document["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            needed = path not in PROBES
            assert ({"bearer": []} in operation.get("security", [])) == needed, path
            assert ({"401", "403"} <= set(operation["responses"])) == needed, path


async def test_the_document_declares_every_error_in_its_shape(shared_server: Server) -> None:
    paths = (await shared_server.http.get("/openapi.json")).json()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert {"400", "404", "413", "429", "499", "500", "503", "504"} <= set(paths[path]["post"]["responses"])
    for path in ("/generate", "/generate_stream", "/"):
        assert {"413", "422", "424", "429", "500", "503"} <= set(paths[path]["post"]["responses"])
    for path, methods in paths.items():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if status == "200" or path in PROBES:
                    continue
                shape = protocol_of(path).error_schema.__name__
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{shape}"}, (path, status)
                assert ("Retry-After" in answer.get("headers", {})) == (status in ("429", "503"))


async def test_documented_examples_work() -> None:
    limits = {"max_model_len": 1024, "num_blocks": 128, "max_adapters": 1}
    async with start_server(ApiSettings(strict_params=True), kind=AdaptedRunner, **limits) as server:
        server.service.answers = answers = Answers("memory")
        document = (await server.http.get("/openapi.json")).json()
        ran, last_id = 0, ""
        for path, methods in document["paths"].items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            for name, example in content.get("application/json", {}).get("examples", {}).items():
                if name == "score":
                    example["value"]["prompt"] = [[97, 98]]  # its ids are those of a larger vocabulary
                if "previous_response_id" in example["value"]:
                    example["value"]["previous_response_id"] = last_id
                answer = await server.post(path, example["value"])
                assert answer.status_code == 200, (name, answer.text)
                ran += 1
                is_kept = path == "/v1/responses" and not example["value"].get("stream")
                last_id = answer.json()["id"] if is_kept else last_id
        answers.close()
    assert ran == 21


def test_the_application_imports_no_torch() -> None:
    code = (
        "import sys, app.api.app; "
        "print(sorted({'torch', 'transformers', 'app.runner', 'app.kernels'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
