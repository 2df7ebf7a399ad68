"""A server whose model transformers computes: a family that is not served otherwise, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from app import LLM, SamplingParams
from app.cli import main
from tests.byte_tokenizer import CHATML_TEMPLATE, write_byte_tokenizer
from tests.integration.server import START_TIMEOUT, Server, spawn, start_server
from tests.runner.foreign.tiny import generated, make, save

PROMPTS = ["Why is the sky blue?", "a", "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve."]
COUNT = 10


@pytest.fixture(scope="module")
def model() -> Any:
    return make("rwkv")


@pytest.fixture(scope="module")
def directory(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = save(model, tmp_path_factory.mktemp("via") / "tiny-rwkv")
    write_byte_tokenizer(saved)
    (saved / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML_TEMPLATE}))
    return saved


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with start_server(
        str(directory), "--via", "transformers", "--max-num-batched-tokens", "32", "--max-num-seqs", "8"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def expected(model: Any) -> list[list[int]]:
    return [generated(model, list(prompt.encode()), COUNT) for prompt in PROMPTS]


def generate(server: Server, prompt: str) -> list[int]:
    parameters = {"max_new_tokens": COUNT, "details": True, "do_sample": False, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/generate", json={"inputs": prompt, "parameters": parameters}, timeout=60)
    answer.raise_for_status()
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def complete(server: Server, **body: Any) -> dict[str, Any]:
    body = {"prompt": PROMPTS[0], "max_tokens": COUNT, "ignore_eos": True, **body}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def test_it_says_whose_model_it_is(server: Server) -> None:
    assert "via transformers: slow, theirs" in "".join(server.lines)
    (card,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert (card["id"], card["via"]) == ("tiny-rwkv", "transformers")
    assert httpx.get(f"{server.url}/info").json()["model_via"] == "transformers"


def test_greedy_tokens_are_those_of_generate(server: Server, expected: list[list[int]]) -> None:
    assert [generate(server, prompt) for prompt in PROMPTS] == expected


def test_requests_at_once_get_the_same_tokens(server: Server, expected: list[list[int]]) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda prompt: generate(server, prompt), PROMPTS * 2)) == expected * 2


def test_a_stream_is_the_whole_answer(server: Server) -> None:
    whole = complete(server, temperature=0)["choices"][0]["text"]
    body = {"prompt": PROMPTS[0], "max_tokens": COUNT, "ignore_eos": True, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        data = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    assert len(data) > 1
    assert "".join(json.loads(line)["choices"][0]["text"] for line in data) == whole


def test_choices_of_a_seed_come_again(server: Server) -> None:
    texts = [[choice["text"] for choice in complete(server, n=3, seed=5, temperature=1)["choices"]] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_chat_is_answered(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert all(len(token["top_logprobs"]) == 2 for token in answer["choices"][0]["logprobs"]["content"])


def test_in_process_it_says_the_same(directory: Path, expected: list[list[int]]) -> None:
    params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
    with LLM(str(directory), via="transformers", max_num_seqs=2) as llm:
        assert [done.token_ids for done in llm.generate(PROMPTS, params)] == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "architectures = 'RwkvForCausalLM' is not supported; "),
        (("--via", "transformers", "--quantization", "int8"), "quantization = 'int8': via transformers"),
        (("--via", "vllm"), "bad setting via = 'vllm' (flag --via)"),
    ],
)
def test_what_cannot_be_is_one_line(directory: Path, args: tuple[str, ...], message: str) -> None:
    server = spawn("--model", str(directory), *args)
    assert server.process.wait(START_TIMEOUT) != 0
    server.close()
    assert message in (server.lines[-1]), "".join(server.lines)


def test_a_plan_of_shapes_alone(model: Any, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    args = ["plan", str(tmp_path), "--via", "transformers", "--gpu-memory", "8GiB", "--max-num-seqs", "4"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    parts = ("weights", "steps", "reserve", "kv_cache")
    assert sum(row[part] for part in parts) == row["memory"] == 8 << 30
    assert (row["via"], row["dtype"]) == ("transformers", "bfloat16")
    assert row["weights"] == 2 * sum(weight.numel() for weight in model.parameters())
    assert row["max_model_len"] <= row["kv_cache_tokens"]
    assert "via transformers" in result.stderr
    small = CliRunner().invoke(main, [*args, "--gpu-memory", "512MiB"])
    assert (small.exit_code, "are too little" in small.stderr) == (1, True)
