"""Several models in one server, each an engine process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.server import Server, start_server

TIMEOUT = 120.0


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of models a and b, which are sound, and c, whose weights are cut off."""
    directory = tmp_path_factory.mktemp("models")
    for name in "abc":
        shutil.copytree(tiny_llama, directory / name)
    weights = directory / "c" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return directory


@pytest.fixture(scope="module")
def several(models: Path) -> Iterator[Server]:
    names = [str(models / name) for name in "abc"]
    small = ("--kv-cache-memory", "8MiB", "--dtype", "float32", "--threads", "1", "--drain-timeout", "60")
    with start_server(*names, *small) as server:
        yield server


@pytest.fixture
def http(several: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=several.url, timeout=TIMEOUT) as client:
        yield client


def complete(http: httpx.Client, model: str) -> httpx.Response:
    return http.post("/v1/completions", json={"model": model, "prompt": "Hi", "max_tokens": 4, "temperature": 0})


def states(http: httpx.Client) -> dict[str, str]:
    return {card["id"]: card["state"] for card in http.get("/v1/models").json()["data"]}


def streamed(model: str) -> dict[str, object]:
    return {"model": model, "prompt": "Hi", "max_tokens": 400, "ignore_eos": True, "stream": True}


def test_models_are_switched_and_a_broken_one_harms_none(several: Server, http: httpx.Client) -> None:
    assert states(http)["a"] == "ready"
    first = complete(http, "a").json()["choices"][0]["text"]
    assert complete(http, "b").json()["choices"][0]["text"] == first, "the same weights under another name"
    broken = complete(http, "c")
    assert (broken.status_code, broken.headers.get("retry-after")) == (503, None)
    assert "model.safetensors" in broken.json()["error"]["message"]
    assert states(http) == {"a": "ready", "b": "ready", "c": "failed"}
    assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
    assert complete(http, "a").status_code == 200
    page = http.get("/metrics").text
    assert 'tuili_requests_total{endpoint="/v1/completions",model_name="a",outcome="ok"} 2.0' in page
    assert 'tuili_requests_total{endpoint="/v1/completions",model_name="b",outcome="ok"} 1.0' in page
    assert "after" in next(line for line in several.lines if "ready:" in line)


def test_a_killed_engine_leaves_the_others_streams_untouched(several: Server, http: httpx.Client) -> None:
    before = {child.pid for child in psutil.Process(several.pid).children()}
    http.post("/api/generate", json={"model": "b", "keep_alive": 0})
    for _ in range(600):
        left = {child.pid for child in psutil.Process(several.pid).children()}
        if states(http)["b"] == "idle" and len(left) == 1:
            break
        time.sleep(0.05)
    assert left < before or len(before) == 1
    complete(http, "b")
    (engine_of_b,) = {child.pid for child in psutil.Process(several.pid).children()} - left
    with http.stream("POST", "/v1/completions", json=streamed("a")) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(engine_of_b, signal.SIGKILL)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert not any('"error"' in line for line in rest)
    assert complete(http, "b").status_code == 200, "it waits for the engine's restart"
    page = http.get("/metrics").text
    assert 'tuili_engine_restarts_total{model_name="a"} 0.0' in page
    assert 'tuili_engine_restarts_total{model_name="b"} 1.0' in page


def test_sigterm_waits_for_the_streams_of_all(several: Server, http: httpx.Client) -> None:
    """The last test of the module's server."""
    assert complete(http, "b").status_code == 200
    engines = psutil.Process(several.pid).children()
    with (
        httpx.Client(base_url=several.url, timeout=TIMEOUT) as other,
        http.stream("POST", "/v1/completions", json=streamed("a")) as first,
        other.stream("POST", "/v1/completions", json=streamed("b")) as second,
    ):
        answers = [first.iter_lines(), second.iter_lines()]
        for lines in answers:
            next(lines)
        os.kill(several.pid, signal.SIGTERM)
        ends = [[line for line in lines if line][-1] for lines in answers]
    assert ends == ["data: [DONE]"] * 2
    assert several.process.wait(60) == 0
    assert not any(engine.is_running() for engine in engines)
    assert "Traceback" not in "".join(several.lines)
