"""What whole steps of Triton kernels are held to, interpreted or on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.contract.request import SamplingParams
from app.kernels import dispatch
from app.kernels.collective import ONE_RANK
from app.runner.model_runner import ModelRunner
from app.runner.start import load_runner
from tests.models.tiny import VARIANTS, make_reference, save
from tests.runner.driver import Request, discard, engine_config, run

MAX_TOKENS = 32
CHUNK = 11
GREEDY = SamplingParams(temperature=0.0)


def runner_of(directory: Path, model: str, **options: Any) -> ModelRunner:
    """Two layers of a tiny model; all of one whose layers are unlike."""
    layers = {} if "layer_types" in VARIANTS[model][1] else {"num_hidden_layers": 2}
    checkpoint = save(make_reference(model, **layers), directory)
    limits = {"max_num_batched_tokens": MAX_TOKENS, "max_logit_rows": MAX_TOKENS}
    # Without the warm-up: one step less, of which interpreted ones take seconds.
    return load_runner(engine_config(checkpoint, **limits, **options), discard, ONE_RANK)


def requests() -> list[Request]:
    """A prompt of one token, one of two blocks in two chunks, and a sampled one with a penalty."""
    return [
        Request(0, [7], [0], GREEDY),
        Request(1, [(3 * i) % 128 for i in range(17)], [5, 2], GREEDY),
        Request(2, [1, 2, 3], [3], SamplingParams(top_p=0.9, top_k=40, repetition_penalty=1.3), seed=5),
    ]


def gives_the_tokens_of_the_reference(runner: ModelRunner, num_tokens: int) -> None:
    """The reference kernels compute the same steps, unpadded, on the same weights and pages; the runner is spent."""
    computed, expected = requests(), requests()
    run(runner, computed, num_tokens, chunk=CHUNK)
    dispatch.configure(dispatch.Mode.REFERENCE, threads=1)
    runner.run_eagerly()
    run(runner, expected, num_tokens, chunk=CHUNK)
    assert [sequence.error for sequence in computed] == [None] * 3
    assert [sequence.outputs for sequence in computed] == [sequence.outputs for sequence in expected]


def gives_the_same_in_a_batch_alone_and_on_a_prefix(runner: ModelRunner, num_tokens: int) -> None:
    """A sequence whose first block of the prompt is there already has only what follows it computed."""
    together, alone, hit = requests(), requests()[1], requests()[1]
    run(runner, together, num_tokens, chunk=CHUNK)
    run(runner, [alone], num_tokens)
    assert alone.outputs == together[1].outputs
    hit.blocks, hit.num_computed = [alone.blocks[0], 7], 16
    run(runner, [hit], num_tokens)
    assert hit.outputs == alone.outputs
