"""A real model under the engine: greedy tokens are transformers' however requests are scheduled."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from tests.models.tiny import reference_logits
from tests.runner.driver import engine_config, runner_of

torch.manual_seed(5)
TOKENS: list[int] = torch.randint(128, (512,)).tolist()
PROMPTS = [[*TOKENS[:70], 1, 2], [*TOKENS[:70], 3], TOKENS[100:103], TOKENS[:33]]
NUM_TOKENS = 32


def engine_of(checkpoint: Path, **changes: Any) -> EngineCore:
    """An engine over the kernels' specification, with integrity checks."""
    options = {"kernels": "reference", "integrity_checks": True, **changes}
    return EngineCore(runner_of(checkpoint, **options), engine_config(checkpoint, **options))


def answers(engine: EngineCore, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    """Greedy tokens of prompts that are asked at once."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.add_request(GenerateRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, seed=0))
    tokens: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens[int(output.request_id)] += output.new_token_ids
        engine.check_integrity()
    return tokens


def greedy(
    reference: PreTrainedModel, prompt: list[int], num_tokens: int = NUM_TOKENS, draft: Sequence[int] = ()
) -> list[int]:
    """transformers' tokens.

    Args:
        draft: tokens that are likely right: transformers' model then runs once for all of them up to the first that is
            wrong, not once for each. It changes nothing but the time that it takes.
    """
    chosen: list[int] = []
    while len(chosen) < num_tokens:
        guess = list(draft[len(chosen) :]) if chosen == list(draft[: len(chosen)]) else []
        logits = reference_logits(reference, [*prompt, *chosen, *guess])[len(prompt) + len(chosen) - 1 :]
        for token, guessed in itertools.zip_longest(logits.argmax(-1).tolist(), guess):
            chosen.append(token)
            if token != guessed:
                break
    return chosen[:num_tokens]


def gives_transformers_tokens(reference: PreTrainedModel, checkpoint: Path, short: int | tuple[int, ...]) -> None:
    """Batched, in chunks, behind prefixes, and preempted.

    Args:
        short: blocks of the KV cache, or of each of its groups, that are too few for all requests at once.
    """
    batched = answers(engine_of(checkpoint, max_num_batched_tokens=128), PROMPTS)
    expected = [greedy(reference, prompt, draft=answer) for prompt, answer in zip(PROMPTS, batched, strict=True)]
    assert batched == expected, "batched"
    chunked = engine_of(checkpoint, max_num_batched_tokens=20)
    assert answers(chunked, PROMPTS) == expected
    assert answers(chunked, PROMPTS) == expected, "behind prefixes"
    assert chunked.stats().prefix_hit_tokens_total > 0
    preempting = engine_of(checkpoint, max_num_batched_tokens=48, num_blocks=short)
    assert answers(preempting, PROMPTS) == expected
    assert preempting.stats().preemptions_total > 0
