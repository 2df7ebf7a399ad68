"""Random requests under random limits on a tiny real model: each answer is the one that the request gets alone.

Sampling parameters stand at their extremes as often as not; scheduler, runner and sampler are the real ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.contract.config import EngineConfig
from app.contract.frames import EngineOutput, LoadProgress, TokenLogprobs
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.runner.start import make_runner
from tests.integration.engines import isas
from tests.models.tiny import make_reference, save

VOCAB = 211
NUM_SCENARIOS = 6
WINDOW = 20
FORMATS = {
    "float32": {"kernels": "reference"},
    "int8, bf16 pages": {"quantization": "int8", "kv_cache_dtype": "bfloat16", "kernels": "strict"},
    "int8": {"quantization": "int8", "kernels": "strict"},
    "bfloat16": {"dtype": "bfloat16", "kernels": "strict"},
    "bfloat16, int8 pages": {"dtype": "bfloat16", "kv_cache_dtype": "int8", "kernels": "strict"},
}


@dataclass
class Answer:
    """All that a request was told."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish: tuple[str, str | None] | None = None

    def add(self, output: EngineOutput) -> None:
        self.token_ids += output.new_token_ids
        self.logprobs += output.logprobs or []
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        if output.finish_reason is not None:
            self.finish = (output.finish_reason, output.error.message if output.error else None)


def checkpoint(variant: str, directory: Path) -> Path:
    """A random one; Mistral's layers see a window that ends within the second block."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    window = {"sliding_window": WINDOW} if variant == "mistral" else {}
    return save(make_reference(variant, vocab_size=VOCAB, **shape, **window), directory)


def make_engine(model_dir: Path, formats: dict[str, str], **limits: Any) -> EngineCore:
    config = EngineConfig(
        model_dir=str(model_dir),
        weights=tuple(str(file) for file in model_dir.glob("*.safetensors")),
        integrity_checks=True,
        eos_token_ids=(5, VOCAB + 1),
        **{**formats, **limits},
    )
    return EngineCore(make_runner(config, _ignore), config)


def _ignore(progress: LoadProgress) -> None:
    del progress


def draw_sampling(rng: random.Random) -> SamplingParams:
    max_tokens = rng.randint(1, 40)
    return SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.0, 1e-9, 1e30]),
        top_p=rng.choice([1.0, 0.9, 0.5, 1e-12]),
        top_k=rng.choice([0, 1, 5, 2**64 - 1]),
        min_p=rng.choice([0.0, 0.0, 0.1, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 1e-4, 1e4]),
        presence_penalty=rng.choice([0.0, 0.0, 1.5, -1e30]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5, 1e30]),
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, rng.randint(0, max_tokens)]),
        stop_token_ids=rng.choice([(), (7, 7, 8)]),
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice([None, 0, 3, VOCAB]),
        prompt_logprobs=rng.choice([None, None, None, 0, VOCAB]),
        logit_bias=rng.choice([{}, {}, {5: -100.0, 3: 2.5}, dict.fromkeys(range(VOCAB), -1e30)]),
    )


def draw_requests(rng: random.Random) -> list[GenerateRequest]:
    shared = rng.choices(range(VOCAB), k=60)
    requests = []
    for index in range(rng.randint(3, 10)):
        length = rng.choice([1, 2, 15, 16, 17, 31, 32, 33, 60])
        kept = rng.choice([0, length - 1, rng.randint(0, length)])
        requests.append(
            GenerateRequest(
                request_id=str(index),
                prompt_token_ids=shared[:kept] + rng.choices(range(VOCAB), k=length - kept),
                sampling=draw_sampling(rng),
                seed=rng.choice([-1, 0, 2**64 - 1, rng.randrange(2**63)]),
                sample_index=rng.choice([0, 1, 2**32 - 1]),
                priority=rng.randint(-1, 1) << 30,
                arrival_time=float(index),
            )
        )
    return requests


def answers_of(engine: EngineCore, requests: Sequence[GenerateRequest], rng: random.Random) -> dict[str, Answer]:
    """Lets the requests come up to three a step."""
    answers = {request.request_id: Answer() for request in requests}
    waiting = list(requests)
    while waiting or engine.has_work:
        for _ in range(min(len(waiting), rng.randint(0, 3))):
            engine.add_request(waiting.pop(0))
        for output in engine.step():
            answers[output.request_id].add(output)
        engine.check_integrity()
    return answers


def assert_same(got: Answer, alone: Answer, tolerance: float) -> None:
    """Everything is the same, log-probabilities within ``tolerance``; bit for bit if that is 0."""
    assert (got.token_ids, got.finish) == (alone.token_ids, alone.finish)
    if tolerance == 0:
        assert (got.logprobs, got.prompt_logprobs) == (alone.logprobs, alone.prompt_logprobs)
    assert (got.prompt_logprobs is None) == (alone.prompt_logprobs is None)
    pairs = zip(got.logprobs + (got.prompt_logprobs or []), alone.logprobs + (alone.prompt_logprobs or []), strict=True)
    for one, other in pairs:
        assert (one.token_id, len(one.top)) == (other.token_id, len(other.top))
        assert one.logprob == pytest.approx(other.logprob, abs=tolerance)


# Each format on full attention, on windows those whose pages differ, and biases in fp32 and int8.
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        *(("llama", name) for name in FORMATS),
        *(("mistral", name) for name in ("float32", "int8", "bfloat16")),
        *(("qwen3_biases", name) for name in ("float32", "int8, bf16 pages")),
    ],
)
def test_every_answer_is_the_one_that_the_request_gets_alone(variant: str, name: str, tmp_path: Path) -> None:
    model_dir, formats = checkpoint(variant, tmp_path), FORMATS[name]
    native = formats["kernels"] == "strict"
    if native and not isas():
        pytest.skip("no native kernels here")
    reference = make_engine(model_dir, formats, num_blocks=16, enable_prefix_caching=False, threads=1)
    preemptions = hits = 0
    for seed in range(NUM_SCENARIOS):
        rng = random.Random(seed)
        requests = draw_requests(rng)
        engine = make_engine(
            model_dir,
            formats,
            num_blocks=rng.choice([7, 8, 10, 40]),
            max_model_len=112,
            max_num_seqs=rng.randint(2, 8),
            max_num_batched_tokens=rng.choice([8, 33, 256]),
            max_logit_rows=rng.choice([8, 20, 256]),
            pipeline_depth=rng.randint(1, 3),
            threads=1 + seed % 3 if native else 1,
        )
        answers = answers_of(engine, requests, rng)
        for request in requests:
            alone = answers_of(reference, [request], rng)[request.request_id]
            assert_same(answers[request.request_id], alone, 0 if native else 3e-5)
        preemptions += engine.stats().preemptions_total
        hits += engine.stats().prefix_hit_tokens_total
    assert preemptions > 0
    assert hits > 0
