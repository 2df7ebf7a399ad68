"""A GPU's steps give the tokens of the kernels' specification: recorded, overlapped, in every format.

Run on a GPU box with ``TRITON_INTERPRET=0 pytest -m gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.kernels import dispatch
from app.kernels.int8 import quantize_tokens
from app.kernels.linear import Activation, linear
from app.kernels.paged_attention import paged_attention
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerKVCache, LinearWeight, SplitKWorkspace
from tests.integration.whole_steps import (
    MAX_TOKENS,
    gives_the_same_in_a_batch_alone_and_on_a_prefix,
    gives_the_tokens_of_the_reference,
    runner_of,
)
from tests.runner.driver import engine_config

pytestmark = pytest.mark.gpu

NUM_TOKENS = 4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("llama_biases", {"dtype": "float32"}),
    "bfloat16": ("qwen3", {"dtype": "bfloat16"}),
    "float16": ("llama_biases", {"dtype": "float16"}),
    "int8 pages": ("qwen3", {"dtype": "bfloat16", "kv_cache_dtype": "int8"}),
    "W8A8, int8 pages": ("llama_biases", {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"}),
    "experts": ("qwen3moe", {"dtype": "float32"}),
    "experts, W8A8": ("qwen3moe", {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"}),
    "shared pages": ("gemma4", {"dtype": "float32"}),
    "experts apart": ("gemma4_experts", {"dtype": "float32"}),
    "W8A16": ("qwen3", {"dtype": "float16", "quantization": "int8_weight_only"}),
    "short convolutions": ("lfm2", {"dtype": "bfloat16"}),
    "short convolutions, W8A8": ("lfm2", {"dtype": "bfloat16", "quantization": "int8"}),
    "learned positions": ("gpt2", {"dtype": "bfloat16"}),
    "learned positions, W8A8": ("gpt2", {"dtype": "bfloat16", "quantization": "int8"}),
}
"""Model (six heads on two, with biases; or with normed queries and keys) and formats."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


@pytest.mark.parametrize("case", CASES)
def test_the_tokens_are_those_of_the_reference(case: str, tmp_path: Path) -> None:
    name, formats = CASES[case]
    runner = runner_of(tmp_path, name, device="cuda", **formats)
    assert runner.info.kernels == "triton"
    gives_the_tokens_of_the_reference(runner, NUM_TOKENS)


@pytest.mark.parametrize("case", ["W8A8, int8 pages"])
def test_a_sequence_is_the_same_in_a_batch_alone_and_on_a_prefix(case: str, tmp_path: Path) -> None:
    name, formats = CASES[case]
    gives_the_same_in_a_batch_alone_and_on_a_prefix(runner_of(tmp_path, name, device="cuda", **formats), NUM_TOKENS)


def served(directory: Path, device: str, **options: Any) -> tuple[list[list[int]], int]:
    """Twelve requests through an engine of four slots whose pages do not suffice; their tokens, and steps replayed."""
    small: dict[str, Any] = {"max_num_seqs": 4, "num_blocks": 9}
    runner = runner_of(directory, "llama_biases", device=device, dtype="float32", max_model_len=120, **small, **options)
    engine = EngineCore(runner, engine_config(directory, max_num_batched_tokens=MAX_TOKENS, **small))
    outputs = {}
    for index in range(12):
        prompt = [(7 * index + 3 * i) % 128 for i in range(1 + 5 * index)]
        sampling = SamplingParams(temperature=float(index % 2), max_tokens=24 + index, ignore_eos=True, top_p=0.9)
        name = f"request-{index}"
        outputs[name] = list[int]()
        engine.add_request(
            GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, seed=index, arrival_time=0.0)
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


@pytest.mark.parametrize("width", [576, 4096, 12288])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantised_rows_are_those_of_the_reference_bit_for_bit(width: int, dtype: torch.dtype) -> None:
    """Values half between two integers included: of them there are many in rows that themselves are int8."""
    random = torch.Generator().manual_seed(1)
    magnitudes = torch.exp2(torch.linspace(-120, 100, 64)).unsqueeze(1)
    x = torch.randn(64, width, generator=random)
    halves = torch.randint(-254, 255, (64, width), generator=random) / 2
    halves[:, 0] = 127
    rows = (torch.cat([x, halves]) * magnitudes.repeat(2, 1)).to(dtype)
    expected, scales = quantize_tokens(rows)
    out = Act(torch.empty(128, width, dtype=torch.int8, device="cuda"), torch.empty(128, 1, device="cuda"))
    quantize_triton(rows.cuda(), out)
    assert out.values.cpu().equal(expected)
    assert out.scale is not None
    assert out.scale.cpu().equal(scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_decode_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    """Of few rows several programs share one, of many each has one."""
    device, rows, heads, kv_heads, width = torch.device("cuda"), 80, 32, 8, 128
    random = torch.Generator(device).manual_seed(1)
    lengths = torch.randint(1, 5000, (rows,), dtype=torch.int32, device=device, generator=random)
    pages = (rows * 320, 2, kv_heads, 16)
    if dtype is torch.int8:
        values = torch.randint(-127, 128, (*pages, width), dtype=dtype, device=device, generator=random)
        cache = LayerKVCache(values, torch.rand(pages, device=device, generator=random).half() * 0.02)
    else:
        cache = LayerKVCache(torch.randn(*pages, width, device=device, generator=random).to(dtype))
    tables = torch.randperm(rows * 320, device=device, generator=random).int().view(rows, 320)
    q = torch.randn(rows, heads, width, device=device, generator=random).bfloat16()

    def attend(first: int, last: int) -> torch.Tensor:
        count = last - first
        meta = AttentionMetadata(
            query_start_loc=torch.arange(count + 1, dtype=torch.int32, device=device),
            seq_lens=lengths[first:last],
            block_tables=tables[first:last],
            slot_mapping=torch.zeros(count, dtype=torch.int64, device=device),
            max_query_len=1,
            max_seq_len=5000,
            split_workspace=new_split_workspace(count, heads, kv_heads, width, device),
        )
        out = torch.empty(count, heads * width, dtype=torch.bfloat16, device=device)
        paged_attention(q[first:last], cache, meta, Act(out), scale=width**-0.5)
        return out

    whole = attend(0, rows)
    assert all(attend(first, last).equal(whole[first:last]) for first, last in ((0, 1), (7, 9), (3, 40), (20, 80)))
