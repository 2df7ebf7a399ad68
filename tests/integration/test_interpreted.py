"""Whole steps of Triton kernels in Triton's interpreter give the tokens of the kernels' specification."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.kernels import dispatch
from app.runner.model_runner import ModelRunner
from tests.integration.whole_steps import (
    GREEDY,
    gives_the_same_in_a_batch_alone_and_on_a_prefix,
    gives_the_tokens_of_the_reference,
    runner_of,
)
from tests.runner.driver import Request, run
from tests.runner.steps import step_of

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

NUM_TOKENS = 2
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("llama_biases", {}),
    "bfloat16": ("qwen3", {"dtype": "bfloat16"}),
    "int8 pages": ("qwen3", {"kv_cache_dtype": "int8"}),
    "W8A8, int8 pages": ("llama_biases", {"quantization": "int8", "kv_cache_dtype": "int8"}),
    "W8A16": ("qwen3", {"quantization": "int8_weight_only"}),
    "two KV groups": ("qwen2_sliding", {}),
    "recurrent states": ("qwen3_5", {}),
    "recurrent states, W8A8": ("qwen3_next", {"quantization": "int8"}),
    "experts, W8A8": ("qwen3moe", {"quantization": "int8", "kv_cache_dtype": "int8"}),
    "learned positions, W8A8": ("gpt2", {"quantization": "int8"}),
    "Gemma 3, W8A8": ("gemma3", {"quantization": "int8"}),
    "parallel layers, W8A8": ("gpt_neox", {"quantization": "int8"}),
    "StarCoder2": ("starcoder2", {"dtype": "bfloat16"}),
    "LongRoPE": ("phi3", {"quantization": "int8"}),
    "shared pages": ("gemma4", {}),
    "shared pages, W8A8": ("gemma4", {"quantization": "int8", "kv_cache_dtype": "int8"}),
    "experts apart, W8A8": ("gemma4_experts", {"quantization": "int8"}),
    "one norm for both parts, W8A8": ("cohere2", {"quantization": "int8", "kv_cache_dtype": "int8"}),
}
"""Model (six heads on two, with biases; or with normed queries and keys) and formats.

Of kinds of layers W8A8 will do, of which activations change format on their way; each kernel takes the other formats in
``tests/kernels``.
"""
FAST = ("W8A8, int8 pages", "two KV groups")
"""The others are slow: the interpreter takes up to a minute a case."""


@pytest.fixture
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelRunner]:
    name, formats = CASES[request.param]
    yield runner_of(tmp_path, name, kernels="interpret", **formats)
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


@pytest.mark.parametrize(
    "runner", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES], indirect=True
)
def test_the_tokens_are_those_of_the_reference(runner: ModelRunner) -> None:
    gives_the_tokens_of_the_reference(runner, NUM_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["W8A8, int8 pages"], indirect=True)
def test_a_sequence_is_the_same_in_a_batch_alone_and_on_a_prefix(runner: ModelRunner) -> None:
    gives_the_same_in_a_batch_alone_and_on_a_prefix(runner, NUM_TOKENS)


@pytest.mark.parametrize("runner", ["int8 pages", pytest.param("experts, W8A8", marks=pytest.mark.slow)], indirect=True)
def test_decodes_are_padded_and_replayed_and_nobody_else_notices(runner: ModelRunner) -> None:
    """Three rows in a bucket of four: a row too many writes to the trash block and samples for no slot."""
    sequences = [Request(slot, [slot + 1] * 3, [slot], GREEDY) for slot in range(3)]
    run(runner, sequences, 1)
    before = runner.snapshot()
    replayed = []
    for _ in range(3):
        rows = [sequence.next_row(1, from_device=True) for sequence in sequences]
        result = runner.collect(runner.submit(step_of(rows)))
        replayed.append(result.replayed)
        for sequence, output in zip(sequences, result.rows, strict=True):
            sequence.take(output)
    assert replayed == [False, True, True]
    after, others = runner.snapshot(), slice(len(sequences), None)  # their blocks and slots
    assert after.last_tokens[others] == before.last_tokens[others]
    assert after.tables[0][: len(sequences)] == [[0], [1], [2]]
    for ours, theirs in zip(after.pages, before.pages, strict=True):
        assert torch.equal(bits(ours["values"][others]), bits(theirs["values"][others]))
    runner.run_eagerly()
    unpadded = [Request(slot, [slot + 1] * 3, [slot], GREEDY) for slot in range(3)]
    run(runner, unpadded, 4)
    assert [sequence.outputs for sequence in sequences] == [sequence.outputs for sequence in unpadded]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Equal where memory that nobody wrote holds NaN, too."""
    return tensor.view(torch.uint8)


def served(runner: ModelRunner) -> tuple[list[list[int]], list[bool], list[torch.Tensor]]:
    """Prompts in chunks beside decodes: tokens, which steps were replayed, and each layer's keys and values."""
    sequences = [Request(slot, [slot + 1] * length, [2 * slot, 2 * slot + 1]) for slot, length in enumerate((3, 21, 9))]
    replayed = []
    for step in range(8):
        rows = []
        arrived = [sequence for sequence in sequences[: step + 1] if len(sequence.outputs) < 5]
        slots = [init for sequence in arrived for init in sequence.bind()]
        for sequence in arrived:
            decodes = sequence.num_computed >= len(sequence.prompt)
            rows.append(sequence.next_row(8, from_device=decodes))
        result = runner.collect(runner.submit(step_of(rows, slots)))
        replayed.append(result.replayed)
        for sequence, output in zip(arrived, result.rows, strict=True):
            sequence.take(output)
    kept = [
        torch.cat(list(pages["values"][sequence.blocks]), dim=2)[:, :, : sequence.num_computed]
        for pages in runner.snapshot().pages
        for sequence in sequences
    ]
    return [sequence.outputs for sequence in sequences], replayed, kept


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["bfloat16"], indirect=True)
def test_prompts_are_padded_and_replayed_and_nobody_else_notices(runner: ModelRunner, tmp_path: Path) -> None:
    """Missing tokens are a row's of their own, which writes to the trash block and samples for no slot."""
    outputs, replayed, pages = served(runner)
    assert replayed == [False, True, False, True, False, False, True, True]
    unpadded, none, expected = served(
        runner_of(tmp_path, "qwen3", kernels="interpret", dtype="bfloat16", enforce_eager=True)
    )
    assert outputs == unpadded
    assert not any(none)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(pages, expected, strict=True))
