"""Same seed, same text on the real weights, whatever else is in the batch and however the engine came to compute it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.store import ModelFiles
from tests.integration.engines import collect_tokens, isas, make_engine, request, run, step_until_idle

Tokens = dict[str, list[int]]

NUM_TOKENS = 14
SAMPLINGS = {
    "story": SamplingParams(temperature=1.0),
    "python": SamplingParams(temperature=0.8, top_p=0.9),
    "sql": SamplingParams(temperature=1.2, top_k=40, min_p=0.02),
    "chinese": SamplingParams(temperature=1.0, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
}
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8, bf16 pages": {
        "quantization": "int8",
        "kv_cache_dtype": "bfloat16",
        "kernels": "strict",
        "pipeline_depth": 1,
    },
    "bfloat16, int8 pages": {"dtype": "bfloat16", "kv_cache_dtype": "int8", "kernels": "strict"},
}
SEEDS = {"story": 7, "python": 2**64 - 1, "sql": -1, "chinese": 0}


def seeded(prompt_ids: Tokens, name: str, **fields: Any) -> GenerateRequest:
    """The request called ``name``, 14 tokens long, with a cache of its own unless ``fields`` say otherwise."""
    params = msgspec.structs.replace(SAMPLINGS[name], max_tokens=NUM_TOKENS, ignore_eos=True)
    return request(name, prompt_ids[name], params, **{"seed": SEEDS[name], "cache_salt": name, **fields})


@pytest.fixture(scope="module", params=list(FORMATS.values()), ids=list(FORMATS))
def formats(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param and not isas():
        pytest.skip("no native kernels here")
    return dict(request.param)


@pytest.fixture(scope="module")
def engine(smollm2: ModelFiles, formats: dict[str, Any]) -> EngineCore:
    return make_engine(smollm2, **formats)


@pytest.fixture(scope="module")
def alone(engine: EngineCore, prompt_ids: Tokens) -> Tokens:
    """What each request generates with the engine to itself."""
    tokens: Tokens = {}
    for name in SAMPLINGS:
        tokens |= run(engine, [seeded(prompt_ids, name)])
    return tokens


def test_batched_with_others(engine: EngineCore, prompt_ids: Tokens, alone: Tokens) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    engine.add_request(request("greedy", prompt_ids["chat"], greedy, cache_salt="batch"))
    engine.add_request(request("short", prompt_ids["fact"], SamplingParams(max_tokens=3), cache_salt="batch"))
    engine.step()  # the seeded ones join, in other slots than they had alone
    hits = engine.stats().prefix_hit_tokens_total
    for name in reversed(SAMPLINGS):
        engine.add_request(seeded(prompt_ids, name))
    others = [seeded(prompt_ids, "story", sample_index=1), seeded(prompt_ids, "story", seed=8)]
    for index, other in enumerate(others):
        engine.add_request(msgspec.structs.replace(other, request_id=f"story{index}"))
    outputs = engine.step()
    assert engine.stats().num_running == 8
    tokens = collect_tokens([*outputs, *step_until_idle(engine)])
    assert engine.stats().prefix_hit_tokens_total > hits, "the prompts' first blocks are cached by now"
    assert {name: tokens[name] for name in SAMPLINGS} == alone
    texts = [tokens["story"], tokens["story0"], tokens["story1"]]
    assert all(texts.count(text) == 1 for text in texts), "seed and sample index each make another text"


def test_preempted_and_chunked(smollm2: ModelFiles, formats: dict[str, Any], prompt_ids: Tokens, alone: Tokens) -> None:
    engine = make_engine(
        smollm2,
        **formats,
        num_blocks=7,
        max_model_len=96,
        max_num_batched_tokens=8,
        max_num_seqs=4,
        enable_prefix_caching=False,
    )
    tokens = run(engine, [seeded(prompt_ids, name) for name in SAMPLINGS])
    assert engine.stats().preemptions_total > 0
    assert tokens == alone
