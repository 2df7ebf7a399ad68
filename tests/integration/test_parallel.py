"""The real model on three ranks (its heads divide by three), and a server whose rank dies."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from app.contract.config import EngineConfig
from app.contract.request import SamplingParams
from app.runner.model_runner import ModelRunner
from app.runner.parallel import ParallelRunner, start_runner
from app.runner.start import make_runner
from app.store import ModelFiles
from tests.integration.engines import engine_config
from tests.integration.server import start_server
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, discard, run
from tests.runner.driver import engine_config as runner_config
from tests.runner.ranks import run_on_ranks

RANKS = 3
NUM_TOKENS = 4


def config_of(files: ModelFiles, **changes: Any) -> EngineConfig:
    return engine_config(files, max_model_len=512, num_blocks=128, max_num_seqs=8, **changes)


def test_greedy_tokens_are_those_of_one_rank(
    smollm2: ModelFiles, prompt_ids: dict[str, list[int]], tmp_path: Path
) -> None:
    prompts = [ids[:40] for ids in list(prompt_ids.values())[:4]]

    def tokens(runner: ModelRunner) -> list[list[int]]:
        requests = [Request(slot, ids, list(range(8 * slot, 8 * slot + 8))) for slot, ids in enumerate(prompts)]
        run(runner, requests, NUM_TOKENS)
        return [request.outputs for request in requests]

    config = config_of(smollm2)
    expected = tokens(make_runner(config, discard))
    shared = config_of(smollm2, tensor_parallel_size=RANKS)
    assert run_on_ranks(shared, tmp_path / "meeting", tokens) == [expected] * RANKS


def test_int8_on_ranks_is_as_near_to_fp32_as_on_one(
    smollm2: ModelFiles, prompt_ids: dict[str, list[int]], tmp_path: Path
) -> None:
    """Its tokens need not be the same: a row that is split has a scale on each rank, for its part of the inputs."""
    prompt = prompt_ids["long"][:300]

    def logprobs(runner: ModelRunner) -> np.ndarray:
        request = Request(0, prompt, list(range(20)), SamplingParams(temperature=0.0, prompt_logprobs=0))
        run(runner, [request], 1)
        return np.array([entry.logprob for entry in request.prompt_logprobs])

    def error(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values - exact) ** 2)))

    int8 = {"quantization": "int8", "kv_cache_dtype": "float32"}
    exact = logprobs(make_runner(config_of(smollm2), discard))
    one = error(logprobs(make_runner(config_of(smollm2, **int8), discard)))
    shared = config_of(smollm2, tensor_parallel_size=RANKS, **int8)
    first, *others = run_on_ranks(shared, tmp_path / "meeting", logprobs)
    assert 0 < error(first) < 1.1 * one
    assert all(np.array_equal(other, first) for other in others)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this machine")
def test_interpreted_ranks_sample_the_tokens_of_one(tmp_path: Path) -> None:
    """Ranks in processes of their own, as Triton's interpreter is for one thread."""
    directory = save(make_reference("llama_biases", num_hidden_layers=1), tmp_path)

    def outputs(size: int) -> list[list[int]]:
        config = runner_config(directory, kernels="interpret", max_num_batched_tokens=16, tensor_parallel_size=size)
        runner = start_runner(config, discard)
        requests = [Request(0, [7], [0]), Request(1, list(range(20)), [5, 2])]
        run(runner, requests, 3, chunk=11)
        if isinstance(runner, ParallelRunner):
            runner.close()
        return [request.outputs for request in requests]

    assert outputs(2) == outputs(1)


def test_a_server_survives_the_death_of_a_rank(tiny_llama: Path) -> None:
    flags = ("--model", str(tiny_llama), "--dtype", "float32", "--tensor-parallel-size", "2")
    body = {"prompt": "Once", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with start_server(*flags) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        text = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        before = psutil.Process(server.pid).children(recursive=True)
        assert len(before) == 2
        with http.stream("POST", "/v1/completions", json={**body, "max_tokens": 400, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            before[1].kill()
            rest = [line for line in lines if line]
        assert '"error"' in rest[-1]
        psutil.wait_procs(before, timeout=10)
        for _ in range(600):
            if http.get("/readyz").status_code == 200:
                break
            time.sleep(0.1)
        again = http.post("/v1/completions", json=body)
        assert again.json()["choices"][0]["text"] == text
        after = psutil.Process(server.pid).children(recursive=True)
        assert len(after) == 2
        assert server.stop() == 0
        assert "rank 1 was ended by SIGKILL" in "".join(server.lines)
        _, alive = psutil.wait_procs(before + after, timeout=10)
        assert alive == []
