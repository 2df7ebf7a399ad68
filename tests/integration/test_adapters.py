"""A served model whose adapters outlive its engine: it is killed, and the one that takes its place has them again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from transformers import LlamaForCausalLM

from tests.integration.server import START_TIMEOUT, engine_of, start_server
from tests.models.adapter_files import write_adapter


def answer(http: httpx.Client, model: str) -> dict[str, Any]:
    """Tokens of a greedy answer, and their log probabilities to the bit."""
    body = {
        "model": model,
        "prompt": "Once upon",
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 0,
    }
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    logprobs: dict[str, Any] = response.json()["choices"][0]["logprobs"]
    return {name: logprobs[name] for name in ("tokens", "token_logprobs")}


def load(http: httpx.Client, name: str, path: Path) -> None:
    loaded = http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
    assert loaded.status_code == 200, loaded.text


def kill_engine(http: httpx.Client, pid: int) -> None:
    """Kills the engine of the server and waits until another takes requests."""
    engine = engine_of(pid)
    engine.kill()
    end = time.monotonic() + START_TIMEOUT
    while engine in (now := psutil.Process(pid).children()) or not now or http.get("/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.05)


def served(http: httpx.Client) -> set[str]:
    return {card["id"] for card in http.get("/v1/models").json()["data"]}


def test_a_killed_engine_comes_back_with_its_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    base = LlamaForCausalLM.from_pretrained(tiny_llama)
    paths = {name: tmp_path / name for name in ("given", "loaded", "unloaded", "lost")}
    for seed, path in enumerate(paths.values()):
        write_adapter(path, base, seed=seed)
    flags = ("--model", str(tiny_llama), "--adapter", f"given={paths['given']}", "--max-adapters", "4")
    with start_server(*flags) as server, httpx.Client(base_url=server.url, timeout=START_TIMEOUT) as http:
        for name in ("unloaded", "loaded", "lost"):
            load(http, name, paths[name])
        (model,) = served(http) - paths.keys()
        before = {name: answer(http, name) for name in (model, *paths)}
        assert len({tuple(told["token_logprobs"]) for told in before.values()}) == 5, "each says something else"
        unloaded = http.post("/v1/unload_lora_adapter", json={"lora_name": "unloaded"})
        assert unloaded.status_code == 200, unloaded.text
        shutil.rmtree(paths["lost"])
        for _ in range(2):
            kill_engine(http, server.pid)
            assert served(http) == {model, "given", "loaded"}
            for name in (model, "given", "loaded"):
                assert answer(http, name) == before[name], name
            for name in ("unloaded", "lost"):
                assert http.post("/v1/completions", json={"model": name, "prompt": "Hi"}).status_code == 404, name
        load(http, "unloaded", paths["unloaded"])
        assert answer(http, "unloaded") == before["unloaded"], "the new engine has room as the first had"
        assert server.stop() == 0
