"""Drafts change nothing: a position that a row verifies has the bits that it has in a row of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.contract.config import EngineConfig
from app.contract.frames import TokenLogprobs
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.engine.runner import Runner
from app.runner.model_runner import ModelRunner
from app.runner.start import make_runner
from app.store import ModelFiles
from app.text.tokenizer import Tokenizer
from tests.integration.engines import engine_config as smollm2_config
from tests.integration.engines import isas, make_engine, step_until_idle
from tests.integration.prompts import long_prompt
from tests.models.tiny import make_reference, save
from tests.runner.driver import discard, engine_config
from tests.runner.ranks import run_on_ranks

pytestmark = pytest.mark.skipif(not isas(), reason="no native kernels here")

Answers = dict[str, list[TokenLogprobs]]
NUM_TOKENS = 20
NUM_PROMPTS = 200
FORMATS = {
    "int8, bf16 pages": {"quantization": "int8", "kv_cache_dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
}
TORCH = {"kernels": "reference"}
"""Whose products of one row and of several differ in their last bits."""
CHECKPOINTS = ["qwen3", "gemma3_256", "qwen3moe", "deepseek_v3"]
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_reference(request.param), tmp_path_factory.mktemp("checkpoint"))


def engine_of(checkpoint: Path, **options: Any) -> EngineCore:
    config = engine_config(checkpoint, **{"kernels": "strict", "threads": 2, "integrity_checks": True, **options})
    return core_of(make_runner(config, discard), config)


def core_of(runner: Runner, config: EngineConfig) -> EngineCore:
    """An engine that does not learn what a draft costs: it would try fewer of them where the machine is busy."""
    return EngineCore(runner, config, clock=lambda: 0.0)


def asked(prompts: Sequence[list[int]], params: SamplingParams = SAMPLED) -> list[GenerateRequest]:
    """Half of them greedily, half of them sampled."""
    return [
        GenerateRequest(
            request_id=str(index),
            prompt_token_ids=prompt,
            sampling=msgspec.structs.replace(params, temperature=params.temperature * (index % 2)),
            seed=index,
        )
        for index, prompt in enumerate(prompts)
    ]


def answers_of(engine: EngineCore, requests: Sequence[GenerateRequest]) -> Answers:
    answers: Answers = {}
    for request in requests:
        engine.add_request(request)
    for output in step_until_idle(engine):
        assert output.error is None
        answers.setdefault(output.request_id, []).extend(output.logprobs or [])
    return answers


def foretold(requests: Sequence[GenerateRequest], answers: Answers, wrong: int) -> list[GenerateRequest]:
    """The requests with their answers as predictions, every ``wrong``-th token of which is another."""
    return [
        msgspec.structs.replace(
            request,
            prediction_token_ids=[
                (report.token_id + (nth % wrong == wrong - 1)) % 128
                for nth, report in enumerate(answers[request.request_id])
            ],
        )
        for request in requests
    ]


@pytest.mark.parametrize("settings", list(FORMATS.values()), ids=list(FORMATS))
def test_log_probabilities_are_the_same_bit_for_bit(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Rows of several samples beside prompts, decodes and each other, over borders of blocks and of a window."""
    prompts = [[(7 * n + step * 3) % 128 for n in range(length)] for step, length in enumerate((1, 5, 17, 40, 63, 30))]
    requests = asked(prompts)
    plain = answers_of(engine_of(checkpoint, **settings), requests)
    drafting = engine_of(checkpoint, draft="lookup", max_num_batched_tokens=61, **settings)
    assert answers_of(drafting, foretold(requests, plain, wrong=7)) == plain
    stats = drafting.stats()
    assert stats.accepted_draft_tokens_total > 20
    assert stats.draft_tokens_total > stats.accepted_draft_tokens_total
    assert all(record.replayed for record in drafting.take_records())


def test_ranks_verify_the_same_drafts(tmp_path: Path) -> None:
    directory = save(make_reference("qwen3"), tmp_path)
    requests = asked([[(7 * n + step * 3) % 128 for n in range(5 + 11 * step)] for step in range(3)])
    options = {"dtype": "bfloat16", "tensor_parallel_size": 2}

    def answered(asked_for: Sequence[GenerateRequest], draft: str) -> list[tuple[Answers, int]]:
        config = engine_config(directory, draft=draft, **options)

        def work(runner: ModelRunner) -> tuple[Answers, int]:
            engine = core_of(runner, config)
            return answers_of(engine, asked_for), engine.stats().accepted_draft_tokens_total

        return run_on_ranks(config, tmp_path / f"meeting-{draft}", work)

    (plain, none), other = answered(requests, "none")
    drafted = answered(foretold(requests, plain, wrong=7), "lookup")
    assert other == (plain, none) == (plain, 0)
    assert drafted[0] == drafted[1]
    assert drafted[0][0] == plain
    assert drafted[0][1] > 20


def test_torch_chooses_the_same_tokens(tmp_path: Path) -> None:
    directory = save(make_reference("qwen3"), tmp_path)
    requests = asked([[(7 * n + step * 3) % 128 for n in range(5 + 11 * step)] for step in range(4)])
    plain = answers_of(engine_of(directory, **TORCH), requests)
    drafting = engine_of(directory, draft="lookup", **TORCH)
    got = answers_of(drafting, foretold(requests, plain, wrong=7))
    assert drafting.stats().accepted_draft_tokens_total > 20
    for name, answer in plain.items():
        assert [report.token_id for report in got[name]] == [report.token_id for report in answer]
        assert [report.logprob for report in got[name]] == pytest.approx([each.logprob for each in answer], abs=1e-4)


def test_two_hundred_prompts(tmp_path: Path) -> None:
    """Texts of a small model, guessed from themselves and from answers before, every other from what it nearly is."""
    directory = save(make_reference("qwen3"), tmp_path)
    draws = random.Random(3)
    prompts = [draws.choices(range(12), k=draws.randint(4, 24)) for _ in range(NUM_PROMPTS)]
    requests = asked(prompts, msgspec.structs.replace(SAMPLED, temperature=0.3, max_tokens=32))
    settings = {"quantization": "int8", "num_blocks": 400, "integrity_checks": False}
    plain = answers_of(engine_of(directory, **settings), requests)
    drafting = engine_of(directory, draft="history", draft_ngram=2, **settings)
    told = foretold(requests, plain, wrong=9)
    assert answers_of(drafting, [*requests[::2], *told[1::2]]) == plain
    assert drafting.stats().accepted_draft_tokens_total > 500


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"dtype": "auto", "quantization": "auto"}, {"dtype": "bfloat16"}], ids=str)
def test_two_hundred_prompts_of_the_real_model(
    smollm2: ModelFiles, tokenizer: Tokenizer, tmp_path: Path, settings: dict[str, Any]
) -> None:
    text = tokenizer.encode(long_prompt(300))
    prompts = [text[17 * index : 17 * index + 40 + index % 60] for index in range(NUM_PROMPTS)]
    requests = asked(prompts, msgspec.structs.replace(SAMPLED, temperature=0.7, max_tokens=48))
    options = {"packed_cache": str(tmp_path), "max_num_seqs": 8, **settings}
    plain = answers_of(make_engine(smollm2, **options), requests)
    config = smollm2_config(smollm2, draft="history", **options)
    drafting = core_of(make_runner(config, discard), config)
    assert answers_of(drafting, requests) == plain
    assert drafting.stats().accepted_draft_tokens_total > 1000
