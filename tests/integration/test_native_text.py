"""The real model in native formats: answers are the same bit for bit however the engine came to compute them, and
those of the default format are mostly those of fp32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.contract.frames import EngineOutput, TokenLogprobs
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.store import ModelFiles
from tests.integration.engines import isas, make_engine, request, step_until_idle

pytestmark = pytest.mark.skipif(not isas(), reason="no native kernels here")

Answers = dict[str, list[TokenLogprobs]]

NUM_TOKENS = 16
LONG_TOKENS = 400
ASKED = ("nearly_empty", "story", "chat", "python", "chinese", "long")
"""From one token to several chunks; over a block's border in what they generate too."""
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=3)
FORMATS = {
    "int8, bf16 pages": {"quantization": "int8", "kv_cache_dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def packed_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed weights, kept so that only the first engine of a format makes them."""
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="module", params=list(FORMATS.values()), ids=list(FORMATS))
def settings(request: pytest.FixtureRequest, packed_cache: Path) -> dict[str, Any]:
    return {**request.param, "kernels": "strict", "packed_cache": str(packed_cache), "threads": 1}


def asked(prompt_ids: dict[str, list[int]], **fields: Any) -> list[GenerateRequest]:
    """Half of the prompts greedily, half of them sampled, all with the log-probabilities of three alternatives."""
    requests = []
    for index, name in enumerate(ASKED):
        ids = prompt_ids[name][:LONG_TOKENS]
        params = msgspec.structs.replace(SAMPLED, temperature=SAMPLED.temperature * (index % 2))
        requests.append(request(name, ids, params, seed=index, **fields))
    return requests


def answers_of(outputs: Sequence[EngineOutput]) -> Answers:
    answers: Answers = {}
    for output in outputs:
        assert output.error is None
        answers.setdefault(output.request_id, []).extend(output.logprobs or [])
    return answers


def run(engine: EngineCore, requests: Sequence[GenerateRequest]) -> Answers:
    for item in requests:
        engine.add_request(item)
    return answers_of(step_until_idle(engine))


@pytest.fixture(scope="module")
def engine(smollm2: ModelFiles, settings: dict[str, Any]) -> EngineCore:
    return make_engine(smollm2, **settings)


@pytest.fixture(scope="module")
def alone(engine: EngineCore, prompt_ids: dict[str, list[int]]) -> Answers:
    """What each request generates with the engine to itself, on one thread, its prompt in as few steps as may be."""
    answers: Answers = {}
    for item in asked(prompt_ids, cache_salt="alone"):
        answers |= run(engine, [item])
    assert all(len(answer) == NUM_TOKENS for answer in answers.values())
    return answers


def test_prefix_hit(engine: EngineCore, prompt_ids: dict[str, list[int]], alone: Answers) -> None:
    before = engine.stats().prefix_hit_tokens_total
    (item,) = (item for item in asked(prompt_ids, cache_salt="alone") if item.request_id == "long")
    assert run(engine, [item]) == {"long": alone["long"]}
    assert engine.stats().prefix_hit_tokens_total - before >= LONG_TOKENS - 16


@pytest.mark.parametrize(("threads", "budget"), [(2, 1024), (3, 61)])
def test_batched_and_chunked_on_more_threads(
    smollm2: ModelFiles,
    settings: dict[str, Any],
    prompt_ids: dict[str, list[int]],
    alone: Answers,
    threads: int,
    budget: int,
) -> None:
    limits = {"threads": threads, "max_num_batched_tokens": budget, "enable_prefix_caching": False}
    engine = make_engine(smollm2, **{**settings, **limits})
    assert run(engine, asked(prompt_ids)) == alone


def test_preempted(
    smollm2: ModelFiles, settings: dict[str, Any], prompt_ids: dict[str, list[int]], alone: Answers
) -> None:
    limits = {"num_blocks": 6, "max_model_len": 96, "max_num_batched_tokens": 24, "enable_prefix_caching": False}
    engine = make_engine(smollm2, **{**settings, **limits})
    requests = [item for item in asked(prompt_ids) if len(item.prompt_token_ids) < 100]
    assert run(engine, requests) == {item.request_id: alone[item.request_id] for item in requests}
    assert engine.stats().preemptions_total > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("formats", "least"),
    [({"dtype": "auto", "quantization": "auto"}, 0.9), ({"dtype": "bfloat16"}, 0.98)],
    ids=["default", "bfloat16"],
)
def test_what_fp32_chooses_is_mostly_chosen(
    smollm2: ModelFiles,
    packed_cache: Path,
    prompt_ids: dict[str, list[int]],
    reference_tokens: dict[str, list[int]],
    formats: dict[str, str],
    least: float,
) -> None:
    """At each place of fp32's greedy answers, so that one other choice does not count for all that follow it."""
    engine = make_engine(smollm2, packed_cache=str(packed_cache), **formats)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    ranks: list[int] = []
    for name, ids in prompt_ids.items():
        engine.add_request(request(name, ids + reference_tokens[name], params))
        (output,) = step_until_idle(engine)
        assert output.prompt_logprobs is not None
        ranks += [report.rank for report in output.prompt_logprobs[len(ids) - 1 :]]
    assert len(ranks) == sum(map(len, reference_tokens.values()))
    assert ranks.count(1) / len(ranks) >= least
