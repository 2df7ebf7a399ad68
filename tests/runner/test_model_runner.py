"""The runner on a tiny real checkpoint, driven by hand-made steps: transformers' tokens, however they are scheduled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from app.contract.request import SamplingParams
from app.runner.errors import RunnerError
from app.runner.model_runner import ModelRunner
from tests.models.scheduled import greedy
from tests.models.tiny import make_reference, reference_logits, save
from tests.runner.driver import Request, run, runner_of
from tests.runner.steps import row_of, slot_of, step_of

torch.manual_seed(2)
PROMPTS: list[list[int]] = [torch.randint(128, (n,)).tolist() for n in (50, 1, 16, 33)]
NUM_TOKENS = 20
SEEDED = SamplingParams(temperature=1.0, top_p=0.9, logprobs=2)
LOGPROBS = SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=2)


@dataclass
class Loaded:
    reference: PreTrainedModel
    runner: ModelRunner


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    reference = make_reference(request.param)
    return Loaded(reference, runner_of(save(reference, tmp_path_factory.mktemp(request.param))))


def undisturbed(runner: ModelRunner, prompt: list[int], params: SamplingParams, seed: int = 0) -> Request:
    request = Request(0, prompt, list(range(8)), params, seed)
    run(runner, [request], NUM_TOKENS)
    return request


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_tokens_are_those_of_transformers(loaded: Loaded, prompt: list[int]) -> None:
    request = Request(0, prompt, list(range(8)))
    run(loaded.runner, [request], NUM_TOKENS)
    assert request.outputs == greedy(loaded.reference, prompt, NUM_TOKENS, request.outputs)


def test_a_batch_gives_each_what_it_gets_alone(loaded: Loaded) -> None:
    together = [
        Request(slot, prompt, list(range(8 * slot, 8 * slot + 8)), SEEDED, seed=slot)
        for slot, prompt in enumerate(PROMPTS)
    ]
    run(loaded.runner, together, NUM_TOKENS)
    for request in together:
        assert request.outputs == undisturbed(loaded.runner, request.prompt, SEEDED, request.seed).outputs


def test_tokens_from_the_host_and_from_the_device_are_the_same(loaded: Loaded) -> None:
    from_host = Request(0, PROMPTS[0], list(range(8)))
    run(loaded.runner, [from_host], NUM_TOKENS, device=False)
    assert from_host.outputs == undisturbed(loaded.runner, PROMPTS[0], from_host.params).outputs


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.integers(1, 49), blocks=st.permutations(range(64)), slot=st.integers(0, 7))
def test_chunks_blocks_and_slot_do_not_matter(loaded: Loaded, chunk: int, blocks: list[int], slot: int) -> None:
    request = Request(slot, PROMPTS[0], blocks[:8], LOGPROBS)
    run(loaded.runner, [request], NUM_TOKENS, chunk=chunk)
    expected = undisturbed(loaded.runner, PROMPTS[0], LOGPROBS)
    assert request.outputs == expected.outputs
    for mine, other in zip(request.prompt_logprobs, expected.prompt_logprobs, strict=True):
        assert mine.token_id == other.token_id
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("preempt_after", [1, 7, 15])
def test_preempted_and_resumed_elsewhere(loaded: Loaded, params: SamplingParams, preempt_after: int) -> None:
    request = Request(1, PROMPTS[3], list(range(10, 18)), params, seed=5)
    run(loaded.runner, [request], preempt_after)
    intruder = Request(1, PROMPTS[0], list(range(10, 18)), params, seed=6)
    run(loaded.runner, [intruder], 3)
    request.preempt(slot=6, blocks=range(40, 48))
    run(loaded.runner, [request], NUM_TOKENS, chunk=16)
    assert request.outputs == undisturbed(loaded.runner, PROMPTS[3], params, seed=5).outputs


def test_logprobs_are_the_log_softmax_of_transformers_logits(loaded: Loaded) -> None:
    request = undisturbed(loaded.runner, PROMPTS[0], LOGPROBS)
    tokens = request.tokens
    expected = reference_logits(loaded.reference, tokens[:-1]).log_softmax(-1)
    reported = request.prompt_logprobs + request.logprobs
    assert [entry.token_id for entry in reported] == tokens[1:]
    for entry, row in zip(reported, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert entry.rank == 1 + int((row > row[entry.token_id]).sum())
    assert {len(entry.top) for entry in request.prompt_logprobs} == {2}
    assert {len(entry.top) for entry in request.logprobs} == {3}


def test_a_chunk_in_mid_prompt_gives_nothing(loaded: Loaded) -> None:
    step = step_of([row_of(0, 0, PROMPTS[0][:20], blocks=[0, 1], num_samples=0)], [slot_of(0, PROMPTS[0])])
    assert step.num_logit_rows == 0
    (output,) = loaded.runner.collect(loaded.runner.submit(step)).rows
    assert (output.token_ids, output.logprobs, output.prompt_logprobs, output.error) == ([], None, None, None)


def test_nan_logits_fail_their_row_alone(tmp_path: Path) -> None:
    reference = make_reference("qwen3")
    with torch.no_grad():
        reference.get_input_embeddings().weight[127] = torch.nan
    runner = runner_of(save(reference, tmp_path))
    sound = [token % 127 for token in PROMPTS[0]]
    expected = greedy(reference, sound, NUM_TOKENS)
    neighbour, sick = Request(0, sound, list(range(8))), Request(1, [1, 127, 2], [20, 21])
    run(runner, [sick, neighbour], NUM_TOKENS)
    assert sick.error is not None
    assert sick.outputs == []
    assert neighbour.error is None
    assert neighbour.outputs == expected
    # What it left in its slot and its pages does no harm to those who get them next.
    heir = Request(1, sound, [20, 21, *range(8)])
    run(runner, [heir], NUM_TOKENS)
    assert heir.outputs == expected


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([row_of(0, 0, [1] * 129, blocks=range(9))], "129 tokens"),
        ([row_of(0, 0, [1] * 17, blocks=[0])], "beyond the blocks"),
        ([row_of(0, 0, [1], blocks=range(17))], "17 blocks"),
        ([], "0 tokens"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_and_the_runner_goes_on(loaded: Loaded, rows: list, match: str) -> None:
    slots = [slot_of(0, [1])] if rows else []
    with pytest.raises(RunnerError, match=match):
        loaded.runner.submit(step_of(rows, slots))
    request = undisturbed(loaded.runner, PROMPTS[2], SamplingParams(temperature=0.0))
    assert request.outputs == greedy(loaded.reference, PROMPTS[2], NUM_TOKENS, request.outputs)


def test_a_sequence_may_not_outgrow_max_model_len(tmp_path: Path) -> None:
    runner = runner_of(save(make_reference("llama"), tmp_path), max_model_len=30)
    request = Request(0, PROMPTS[0][:30], [0, 1])
    run(runner, [request], 1)
    assert request.error is None
    with pytest.raises(RunnerError, match="31 tokens, the longest may have 30"):
        run(runner, [request], 2)


def test_bfloat16_from_end_to_end(tmp_path: Path) -> None:
    reference = make_reference("llama")
    runner = runner_of(save(reference, tmp_path), dtype="bfloat16")
    (group,) = runner.info.kv_cache.groups
    assert group.dtype == "bfloat16"
    request = Request(0, PROMPTS[0], list(range(8)), LOGPROBS)
    run(runner, [request], 1)
    expected = reference_logits(reference, PROMPTS[0]).log_softmax(-1)
    gaps = [
        abs(entry.logprob - row[entry.token_id].item())
        for entry, row in zip(request.prompt_logprobs, expected[:-1], strict=True)
    ]
    assert 0 < sum(gaps) / len(gaps) < 0.1
