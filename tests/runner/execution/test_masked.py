"""Steps with masks, recorded, padded, op by op and on ranks: they bind the samples that they name, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.contract.request import SamplingParams
from app.contract.step import StepPlan, TokenMasks
from app.kernels import dispatch
from app.runner.masks import with_masks
from app.runner.model_runner import ModelRunner
from tests.integration.engines import isas
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, engine_config, run, runner_of
from tests.runner.masks import FixedMasks
from tests.runner.ranks import run_on_ranks

NUM_TOKENS = 4
ALLOWED = {1: (5, 64, 99), 2: (31,)}
"""Tokens that two of three slots may sample."""
FORMATS: dict[str, dict[str, Any]] = {
    "recorded": {"kernels": "strict", "quantization": "int8"},
    "op by op": {"enforce_eager": True},
    "reference": {"kernels": "reference"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(
        make_reference("llama_biases", hidden_size=96, num_hidden_layers=1), tmp_path_factory.mktemp("checkpoint")
    )


@pytest.fixture(params=list(FORMATS))
def runner(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[ModelRunner]:
    if request.param == "recorded" and not isas():
        pytest.skip("no native kernels here")
    yield runner_of(checkpoint, **FORMATS[request.param])
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


class Masks:
    """Masks of each step's samples in the bound slots, made while the step runs or before it."""

    def __init__(self, vocab_size: int, *, made_meanwhile: bool = False) -> None:
        self._vocab_size = vocab_size
        self._made_meanwhile = made_meanwhile
        self.made: list[FixedMasks] = []

    def __call__(self, step: StepPlan) -> TokenMasks | None:
        slots = [row.slot for row in step.rows if row.num_samples and row.slot in ALLOWED]
        if not slots:
            return None
        allowed = {slot: ALLOWED[slot] for slot in slots}
        self.made.append(FixedMasks(allowed, self._vocab_size, made_meanwhile=self._made_meanwhile))
        return self.made[-1]


def requests() -> list[Request]:
    """A free one, one with a few tokens to choose from, and one without a choice whose prompt comes in chunks."""
    return [
        Request(0, [7, 8], [0], SamplingParams(temperature=0.9), seed=3),
        Request(1, [7, 8], [1], SamplingParams(temperature=2.0, top_p=0.9), seed=4),
        Request(2, [(3 * i) % 90 for i in range(20)], [2, 3], SamplingParams(temperature=0.0)),
    ]


def outputs(
    runner: ModelRunner, *, masks: Callable[[StepPlan], TokenMasks | None] = lambda _: None, device: bool = True
) -> list[list[int]]:
    sequences = requests()
    run(runner, sequences, NUM_TOKENS, chunk=8, masks=masks, device=device)
    assert [sequence.error for sequence in sequences] == [None] * 3
    return [sequence.outputs for sequence in sequences]


def test_masks_bind_their_slots_and_nobody_else(runner: ModelRunner) -> None:
    free = outputs(runner)
    masks = Masks(runner.info.vocab_size)
    masked = outputs(runner, masks=masks)
    assert masked[0] == free[0]
    assert set(masked[1]) <= set(ALLOWED[1])
    assert len(set(masked[1])) > 1
    assert masked[2] == [31] * NUM_TOKENS
    assert {mask.waited for mask in masks.made} == {1}
    assert outputs(runner) == free  # nothing is left of them


def test_when_masks_are_made_changes_nothing(runner: ModelRunner) -> None:
    width = runner.info.vocab_size
    assert outputs(runner, masks=Masks(width, made_meanwhile=True)) == outputs(runner, masks=Masks(width))


def test_a_masked_step_is_the_same_op_by_op(runner: ModelRunner) -> None:
    masked = outputs(runner, masks=Masks(runner.info.vocab_size))
    runner.run_eagerly()
    assert outputs(runner, masks=Masks(runner.info.vocab_size)) == masked


@pytest.mark.parametrize("made_meanwhile", [False, True])
def test_a_masked_step_is_replayed(checkpoint: Path, made_meanwhile: bool) -> None:
    if not isas():
        pytest.skip("no native kernels here")
    runner = runner_of(checkpoint, **FORMATS["recorded"])
    masks = Masks(runner.info.vocab_size, made_meanwhile=made_meanwhile)
    replayed = []
    submit = runner.submit

    def noted(step: StepPlan, masks: TokenMasks | None = None) -> Any:
        handle = submit(step, masks)
        replayed.append(handle.replayed)
        return handle

    runner.submit = noted  # type: ignore[method-assign,assignment]
    outputs(runner, masks=masks)
    assert set(replayed) == {True}


def test_a_padded_step_is_sampled_again_with_its_masks(checkpoint: Path) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    runner = runner_of(checkpoint, kernels="interpret")

    def answer() -> list[list[int]]:
        sequences = requests()[:2]
        run(runner, sequences, 2, masks=Masks(runner.info.vocab_size))
        return [sequence.outputs for sequence in sequences]

    padded = answer()
    assert set(padded[1]) <= set(ALLOWED[1])
    dispatch.configure(dispatch.Mode.REFERENCE, threads=1)
    runner.run_eagerly()
    assert answer() == padded
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


def test_ranks_get_their_masks_with_the_plan(checkpoint: Path, tmp_path: Path) -> None:
    def answer(runner: ModelRunner) -> list[list[int]]:
        sequences, masks = requests(), Masks(runner.info.vocab_size)
        submit = runner.submit

        def sent(step: StepPlan, masks: TokenMasks | None = None) -> Any:
            return submit(step if masks is None else with_masks(step, masks))

        runner.submit = sent  # type: ignore[method-assign,assignment]
        run(runner, sequences, NUM_TOKENS, chunk=8, masks=masks)
        return [sequence.outputs for sequence in sequences]

    config = engine_config(checkpoint, tensor_parallel_size=2)
    first, second = run_on_ranks(config, tmp_path / "meeting", answer)
    assert first == second
    assert set(first[1]) <= set(ALLOWED[1])
    assert first[2] == [31] * NUM_TOKENS
