"""Models that transformers computes under the real engine: its tokens, however they are scheduled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contract.request import SamplingParams
from app.engine.core import EngineCore
from app.runner.foreign.runner import ForeignRunner, make_foreign_runner
from app.runner.start import make_runner
from tests.integration.engines import collect_tokens, request, run, step_until_idle
from tests.runner.driver import discard, engine_config
from tests.runner.foreign.tiny import KINDS, generated, logprobs, make, save

COUNT = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=COUNT, ignore_eos=True, frequency_penalty=0.5)
torch.manual_seed(5)
PROMPTS: list[list[int]] = [torch.randint(256, (length,)).tolist() for length in (1, 5, 21, 40)]


@dataclass
class Loaded:
    kind: str
    model: Any
    directory: Path


@pytest.fixture(scope="module", params=sorted(KINDS))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    model = make(request.param)
    return Loaded(request.param, model, save(model, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    model = make("bloom")
    return Loaded("bloom", model, save(model, tmp_path_factory.mktemp("one-bloom")))


def engine_of(directory: Path, **settings: Any) -> tuple[EngineCore, ForeignRunner]:
    config = engine_config(directory, **{"via": "transformers", "integrity_checks": True, **settings})
    runner = make_foreign_runner(config, discard)
    return EngineCore(runner, config), runner


def test_tokens_are_those_of_generate_however_they_are_scheduled(loaded: Loaded) -> None:
    expected = [generated(loaded.model, prompt, COUNT) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) > 1, "a model that says the same to all proves nothing"
    engine, _ = engine_of(loaded.directory, max_num_batched_tokens=16, max_num_seqs=4)
    tokens = run(engine, [request(str(n), prompt, GREEDY) for n, prompt in enumerate(PROMPTS)])
    assert [tokens[str(n)] for n in range(len(PROMPTS))] == expected
    assert run(engine, [request("alone", PROMPTS[2], GREEDY)])["alone"] == expected[2]


def test_preempted_sequences_go_on_with_the_same_tokens(loaded: Loaded) -> None:
    engine, runner = engine_of(loaded.directory, num_blocks=16, block_size=4, max_num_seqs=4, max_model_len=60)
    for n, prompt in enumerate(PROMPTS[1:3] * 2):
        engine.add_request(request(str(n), prompt, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        assert runner.num_kept <= 16 * 4, "no more is kept than there is room for"
    tokens = collect_tokens(outputs)
    assert engine.stats().preemptions_total > 0
    for n, prompt in enumerate(PROMPTS[1:3] * 2):
        assert tokens[str(n)] == generated(loaded.model, prompt, 30)


def test_what_an_aborted_sequence_kept_is_freed_for_others(bloom: Loaded) -> None:
    engine, runner = engine_of(bloom.directory, num_blocks=8, max_num_seqs=3)
    for n in range(2):
        engine.add_request(request(str(n), PROMPTS[2], SamplingParams(temperature=0.0, max_tokens=40)))
    engine.step()
    assert runner.num_kept == 2 * len(PROMPTS[2])
    engine.abort(["0", "1"])
    step_until_idle(engine)
    assert engine.stats().blocks_used == 0
    long = PROMPTS[3] + PROMPTS[3]
    assert run(engine, [request("long", long, GREEDY)])["long"] == generated(bloom.model, long, COUNT)
    assert runner.num_kept == len(long) + COUNT - 1


def test_log_probabilities_are_those_of_the_model(loaded: Loaded) -> None:
    engine, _ = engine_of(loaded.directory, max_num_batched_tokens=16, max_num_seqs=4)
    prompt = PROMPTS[2]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=1)
    engine.add_request(request("a", prompt, params))
    outputs = step_until_idle(engine)
    tokens = collect_tokens(outputs)["a"]
    expected = logprobs(loaded.model, prompt + tokens)
    own = [entry for output in outputs for entry in output.logprobs or []]
    of_prompt = [entry for output in outputs for entry in output.prompt_logprobs or []]
    assert [entry.token_id for entry in of_prompt + own] == prompt[1:] + tokens
    for position, entry in enumerate(of_prompt + own):
        assert entry.logprob == pytest.approx(expected[position, entry.token_id].item(), abs=1e-3)
    for position, entry in enumerate(own, len(prompt) - 1):
        assert [token for token, _ in entry.top] == expected[position].topk(3).indices.tolist()


def test_seeded_samples_are_the_same_alone_and_in_a_batch(bloom: Loaded) -> None:
    engine, _ = engine_of(bloom.directory, max_num_seqs=4)
    requests = [request(f"{n}", PROMPTS[1], SAMPLED, sample_index=n, seed=11) for n in range(3)]
    together = run(engine, requests)
    assert len({tuple(tokens) for tokens in together.values()}) == 3, "choices of one prompt differ"
    for item in requests:
        assert run(engine, [item])[item.request_id] == together[item.request_id]


def test_a_family_of_ours_has_the_same_tokens_either_way(tmp_path: Path) -> None:
    model = make("mistral")
    engine, _ = engine_of(save(model, tmp_path), max_num_seqs=4)
    config = engine_config(tmp_path, max_num_seqs=4)
    ours = EngineCore(make_runner(config, discard), config)
    requests = [
        request(f"{n}{kind}", PROMPTS[n], params) for n in (1, 3) for kind, params in (("g", GREEDY), ("s", SAMPLED))
    ]
    assert run(engine, requests) == run(ours, requests)


def test_no_prefix_is_shared(bloom: Loaded) -> None:
    engine, _ = engine_of(bloom.directory)
    for name in "ab":
        run(engine, [request(name, PROMPTS[3], GREEDY)])
    assert engine.stats().prefix_hit_tokens_total == 0


def test_bfloat16_is_served_in_bfloat16(bloom: Loaded) -> None:
    _, whole = engine_of(bloom.directory)
    engine, half = engine_of(bloom.directory, dtype="bfloat16")
    assert (half.info.dtype, half.info.kv_cache_dtype, half.info.via) == ("bfloat16", "bfloat16", "transformers")
    assert half.info.weight_bytes * 2 == whole.info.weight_bytes
    assert half.info.kv_cache.groups[0].bytes_per_block * 2 == whole.info.kv_cache.groups[0].bytes_per_block
    assert len(run(engine, [request("a", PROMPTS[1], GREEDY)])["a"]) == COUNT


def test_random_weights_need_no_files(tmp_path: Path) -> None:
    make("opt").config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace("{", '{"architectures": ["OPTForCausalLM"],', 1)
    )
    one, two = (
        run(engine_of(tmp_path, load_format="dummy", seed=3)[0], [request("a", PROMPTS[1], SAMPLED)]) for _ in range(2)
    )
    assert one == two
