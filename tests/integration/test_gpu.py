"""A GPU's steps give the tokens of the kernels' specification: recorded, overlapped, in every format.

Run on a GPU box with ``TRITON_INTERPRET=0 pytest -m gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.core import EngineCore
from app.kernels import dispatch
from app.kernels.linear import Activation, linear
from app.kernels.types import Act, ActFormat, LinearWeight, SplitKWorkspace, StepArena
from app.runner.model_runner import ModelRunner
from app.runner.start import make_runner
from app.types import EngineRequest, SamplingParams
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, discard, engine_config, run

pytestmark = pytest.mark.gpu

NUM_TOKENS = 4
MAX_TOKENS = 32
CHUNK = 11
GREEDY = SamplingParams(temperature=0.0)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("llama_biases", {"dtype": "float32"}),
    "bfloat16": ("qwen3", {"dtype": "bfloat16"}),
    "float16": ("llama_biases", {"dtype": "float16"}),
    "int8 pages": ("qwen3", {"dtype": "bfloat16", "kv_cache_dtype": "int8"}),
    "W8A8, int8 pages": ("llama_biases", {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"}),
    "W8A16": ("qwen3", {"dtype": "float16", "quantization": "int8_weight_only"}),
}
"""Model (six heads on two, with biases; or with normed queries and keys) and formats."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


def runner_on(device: str, directory: Path, name: str, **options: Any) -> ModelRunner:
    checkpoint = save(make_reference(name, num_hidden_layers=2), directory)
    limits = {"max_num_batched_tokens": MAX_TOKENS, "max_logit_rows": MAX_TOKENS}
    return make_runner(engine_config(checkpoint, device=device, **limits, **options), discard)


def specified(runner: ModelRunner) -> None:
    """From here on the reference kernels compute the runner's steps, unpadded, on the same weights and pages."""
    dispatch.configure(dispatch.Mode.REFERENCE, threads=1)
    runner._bucket_graphs = None
    runner._arena = StepArena(MAX_TOKENS, torch.device("cuda"))


def requests() -> list[Request]:
    """A prompt of one token, one of two blocks in two chunks, and a sampled one with a penalty."""
    return [
        Request(0, [7], [0], GREEDY),
        Request(1, [(3 * i) % 128 for i in range(20)], [5, 2], GREEDY),
        Request(2, [1, 2, 3], [3], SamplingParams(top_p=0.9, top_k=40, repetition_penalty=1.3), seed=5),
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_tokens_are_those_of_the_reference(case: str, tmp_path: Path) -> None:
    name, formats = CASES[case]
    runner = runner_on("cuda", tmp_path, name, **formats)
    assert runner.kernels == "triton"
    computed, expected = requests(), requests()
    run(runner, computed, NUM_TOKENS, chunk=CHUNK)
    specified(runner)
    run(runner, expected, NUM_TOKENS, chunk=CHUNK)
    assert [sequence.error for sequence in computed] == [None] * 3
    assert [sequence.outputs for sequence in computed] == [sequence.outputs for sequence in expected]


@pytest.mark.parametrize("case", ["W8A8, int8 pages"])
def test_a_sequence_is_the_same_in_a_batch_alone_and_on_a_prefix(case: str, tmp_path: Path) -> None:
    name, formats = CASES[case]
    runner = runner_on("cuda", tmp_path, name, **formats)
    together, alone, hit = requests(), requests()[1], requests()[1]
    run(runner, together, NUM_TOKENS, chunk=CHUNK)
    run(runner, [alone], NUM_TOKENS)
    assert alone.outputs == together[1].outputs
    hit.blocks, hit.num_computed = [alone.blocks[0], 7], 16
    run(runner, [hit], NUM_TOKENS)
    assert hit.outputs == alone.outputs


def served(directory: Path, device: str, **options: Any) -> tuple[list[list[int]], int]:
    """Twelve requests through an engine of four slots whose pages do not suffice; their tokens, and steps replayed."""
    runner = runner_on(
        device, directory, "llama_biases", dtype="float32", max_num_seqs=4, num_blocks=9, max_model_len=120, **options
    )
    engine = EngineCore(
        runner, engine_config(directory, max_num_seqs=4, num_blocks=9, max_num_batched_tokens=MAX_TOKENS)
    )
    outputs = {}
    for index in range(12):
        prompt = [(7 * index + 3 * i) % 128 for i in range(1 + 5 * index)]
        sampling = SamplingParams(temperature=float(index % 2), max_tokens=24 + index, ignore_eos=True, top_p=0.9)
        name = f"request-{index}"
        outputs[name] = list[int]()
        engine.add_request(
            EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, seed=index, arrival_time=0.0)
        )
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            outputs[output.request_id] += output.new_token_ids
    return list(outputs.values()), sum(record.replayed for record in engine.take_records())


def test_an_engine_that_overlaps_and_replays_gives_the_tokens_of_one_on_the_cpu(tmp_path: Path) -> None:
    on_gpu, replayed = served(tmp_path, "cuda")
    eager, none = served(tmp_path, "cuda", enforce_eager=True)
    on_cpu, _ = served(tmp_path, "cpu", kernels="reference")
    assert on_gpu == eager == on_cpu
    assert (replayed > 0, none) == (True, 0)


@pytest.mark.parametrize("epilogue", ["none", "bias", "residual", "silu_mul"])
def test_a_row_of_an_int8_product_has_the_same_bits_in_any_batch(epilogue: str) -> None:
    """One token's product and many tokens' are different kernels."""
    device, n, k = torch.device("cuda"), 6144, 4096
    random = torch.Generator(device).manual_seed(1)
    values = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device, generator=random)
    bias = torch.randn(n, device=device, generator=random) if epilogue == "bias" else None
    scale = torch.rand(n, device=device, generator=random) * 1e-3
    weight = LinearWeight(values, scale, bias, ActFormat.INT8_TOKEN, SplitKWorkspace.new(device))
    ints = torch.randint(-127, 128, (300, k), dtype=torch.int8, device=device, generator=random)
    x_scale = torch.rand(300, 1, device=device, generator=random) * 1e-2
    silu_mul = epilogue == "silu_mul"
    residual = torch.randn(300, n, device=device, generator=random).bfloat16() if epilogue == "residual" else None

    def product(rows: int) -> torch.Tensor:
        out = torch.empty(rows, n // 2 if silu_mul else n, dtype=torch.bfloat16, device=device)
        linear(
            Act(ints[:rows], x_scale[:rows]),
            weight,
            Act(out),
            residual=None if residual is None else residual[:rows],
            activation=Activation.SILU_MUL if silu_mul else Activation.NONE,
        )
        return out

    whole = product(300)
    assert all(product(rows).equal(whole[:rows]) for rows in (1, 2, 17, 64, 200))
