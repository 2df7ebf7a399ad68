"""Greedy tokens on the real weights equal transformers', however the engine came to compute them.

Every test that claims a mechanism also shows that it fired. Here plain torch computes, which takes minutes: these are
slow tests, and ``test_native_text`` has their like on the native kernels.
"""

from __future__ import annotations

import httpx
import pytest

from app.contract.request import SamplingParams
from app.engine.core import EngineCore
from app.models.architectures import find
from app.store import ModelFiles
from app.text.tokenizer import Tokenizer
from tests.integration.engines import make_engine, request, run
from tests.integration.prompts import PROMPTS
from tests.integration.server import start_server

pytestmark = pytest.mark.slow
Tokens = dict[str, list[int]]
PREFILL_ONLY = SamplingParams(temperature=0.0, max_tokens=1)


@pytest.fixture(scope="module")
def engine(smollm2: ModelFiles) -> EngineCore:
    return make_engine(smollm2)


def test_the_table_says_that_trained_weights_are_tested(smollm2: ModelFiles) -> None:
    (name,) = smollm2.config["architectures"]
    assert find(name).tested == "trained"


def test_prompts_are_what_they_claim(prompt_ids: Tokens) -> None:
    assert len(prompt_ids) == 12
    assert len(prompt_ids["long"]) == 1500
    assert len(prompt_ids["nearly_empty"]) == 1


def test_alone(engine: EngineCore, prompt_ids: Tokens, reference_tokens: Tokens) -> None:
    """Over a block's border at least; all 64 tokens are for the tests that share steps."""
    few = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    for name, ids in prompt_ids.items():
        got = run(engine, [request(name, ids, few, cache_salt=f"alone {name}")])
        assert got == {name: reference_tokens[name][:20]}, name
    assert engine.stats().prefix_hit_tokens_total == 0


def test_batched_with_fifteen_others(engine: EngineCore, prompt_ids: Tokens, reference_tokens: Tokens) -> None:
    others = {f"other{i}": prompt_ids["story"][: 3 + i] for i in range(16 - len(prompt_ids))}
    requests = [request(name, ids, cache_salt="batch") for name, ids in {**prompt_ids, **others}.items()]
    assert len(requests) == 16
    for item in requests:
        engine.add_request(item)
    tokens: Tokens = {}
    most_running = 0
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
        most_running = max(most_running, engine.stats().num_running)
    assert most_running == 16
    assert {name: tokens[name] for name in prompt_ids} == reference_tokens


def test_chunked(smollm2: ModelFiles, prompt_ids: Tokens, reference_tokens: Tokens) -> None:
    engine = make_engine(smollm2, max_num_batched_tokens=100, max_num_seqs=16)
    got = run(engine, [request(name, prompt_ids[name]) for name in ("long", "chat")])
    assert got == {name: reference_tokens[name] for name in got}
    # 1,500 tokens under a budget of 100 take at least 15 steps before the first token.
    assert engine.stats().steps_total >= 15 + 64


def test_prefix_hit(engine: EngineCore, prompt_ids: Tokens, reference_tokens: Tokens) -> None:
    first = run(engine, [request("cold", prompt_ids["long"], cache_salt="hit")])
    before = engine.stats()
    again = run(engine, [request("warm", prompt_ids["long"], cache_salt="hit")])
    after = engine.stats()
    assert after.prefix_hit_tokens_total - before.prefix_hit_tokens_total >= 1488
    assert after.prompt_tokens_total - before.prompt_tokens_total <= 12
    assert first["cold"] == again["warm"] == reference_tokens["long"]


def test_shared_in_the_same_step(smollm2: ModelFiles, prompt_ids: Tokens, reference_tokens: Tokens) -> None:
    engine = make_engine(smollm2, max_num_batched_tokens=2048)
    engine.add_request(request("a", prompt_ids["long"]))
    engine.add_request(request("b", prompt_ids["long"]))
    first = engine.step()
    stats = engine.stats()
    # Both were prefilled by one step, the prefix computed once.
    assert {output.request_id for output in first} == {"a", "b"}
    assert stats.steps_total == 1
    assert stats.prefix_hit_tokens_total >= 1488
    assert stats.prompt_tokens_total <= 1500 + 12
    tokens = {output.request_id: list(output.new_token_ids) for output in first}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.new_token_ids
    assert tokens == {"a": reference_tokens["long"], "b": reference_tokens["long"]}


@pytest.mark.parametrize("depth", [1, 2])
def test_preempted(smollm2: ModelFiles, prompt_ids: Tokens, reference_tokens: Tokens, depth: int) -> None:
    names = ["story", "chat", "python", "chinese"]
    # Each needs up to seven blocks in the end; eleven cannot hold four of them.
    engine = make_engine(smollm2, num_blocks=11, max_model_len=160, enable_prefix_caching=False, pipeline_depth=depth)
    got = run(engine, [request(name, prompt_ids[name]) for name in names])
    assert engine.stats().preemptions_total > 0
    assert got == {name: reference_tokens[name] for name in names}


def test_sixteen_cold_requests_prefill_their_prefix_once(smollm2: ModelFiles, prompt_ids: Tokens) -> None:
    engine = make_engine(smollm2, max_num_batched_tokens=1024)
    prefix = prompt_ids["long"][:512]
    # Tails differ from their first token on: only the prefix can be shared.
    requests = [request(f"r{i}", [*prefix, 1000 + i, *prompt_ids["story"][: 3 + i]], PREFILL_ONLY) for i in range(16)]
    tails = sum(4 + i for i in range(16))
    run(engine, requests)
    assert engine.stats().prompt_tokens_total == 512 + tails
    assert engine.stats().prefix_hit_tokens_total == 15 * 512


def test_a_short_request_that_joins_ends_before_the_long_one(engine: EngineCore, prompt_ids: Tokens) -> None:
    engine.add_request(request("long", prompt_ids["story"], cache_salt="join"))
    for _ in range(8):
        engine.step()
    short = SamplingParams(temperature=0.0, max_tokens=4)
    engine.add_request(request("short", prompt_ids["fact"], short))
    finished: list[str] = []
    while engine.has_work:
        finished += [output.request_id for output in engine.step() if output.finish_reason is not None]
    assert finished == ["short", "long"]


def test_served_over_http(tokenizer: Tokenizer, reference_tokens: Tokens) -> None:
    body = {"prompt": PROMPTS["story"], "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    with start_server("--dtype", "float32") as server:
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status().json()
    assert answer["choices"][0]["text"] == tokenizer.decode(reference_tokens["story"])
    assert answer["usage"]["completion_tokens"] == 64
