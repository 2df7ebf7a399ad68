"""Weights keep what a checkpoint holds, in whatever format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.kernels.types import LinearWeight
from app.models.dummy import fill_dummy_weights
from app.models.llama import LlamaForCausalLM
from app.models.loader import load_weights
from app.quant.destination import Tee
from app.quant.placement import NewWeight, Placement, WeightFormat
from tests.models.tiny import CPU, PagedExecution, load, make_reference, reference_logits, save

N, K = 12, 20
PLAIN = Placement(torch.float32, CPU)
INT8 = Placement(torch.float32, CPU, WeightFormat.INT8)


def dequantized(new: NewWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of an int8 weight, and how far they may be from what was stored."""
    weight = new.weight
    assert isinstance(weight, LinearWeight)
    assert weight.values.dtype == torch.int8
    assert weight.scale is not None
    return weight.values.float() * weight.scale[:, None], weight.scale[:, None] * 0.501


def test_int8_rows_are_quantised_part_by_part() -> None:
    new = INT8.new_weight(N, K, bias=True)
    source = torch.randn(N, K)
    for start, stop in ((0, 5), (5, N)):
        rows, bias = new.rows(start, stop), new.bias(start, stop)
        assert bias is not None
        assert tuple(rows.shape) == (stop - start, K)
        assert rows.numel() == (stop - start) * K
        assert rows.nbytes == (stop - start) * (K + 4)
        rows.copy_(source[start:stop])
        bias.copy_(torch.arange(start, stop, dtype=torch.bfloat16))
    values, error = dequantized(new)
    assert ((values - source).abs() <= error).all()
    assert new.weight.bias is not None
    assert new.weight.bias.tolist() == list(range(N))


def test_a_tee_fills_both() -> None:
    table, copy = torch.empty(3, 4, dtype=torch.bfloat16), torch.empty(3, 4)
    tee = Tee(table, copy)
    tee.copy_(torch.full((3, 4), 0.5))
    assert table.eq(0.5).all()
    assert copy.eq(0.5).all()
    assert (tuple(tee.shape), tee.numel(), tee.nbytes) == ((3, 4), 12, 12 * 6)


@pytest.mark.parametrize(
    ("weight_format", "row_bytes"),
    [
        (WeightFormat.PLAIN, 4 * K),
        (WeightFormat.INT8, K + 4),
        (WeightFormat.PACKED_INT8, K + 4),
        (WeightFormat.PACKED_BF16, 2 * K),
    ],
)
def test_sizes_are_known_before_anything_is_allocated(weight_format: WeightFormat, row_bytes: int) -> None:
    placement = Placement(torch.float32, torch.device("meta"), weight_format)
    assert placement.new_weight(N, K, bias=False).rows(0, N).nbytes == N * row_bytes


@pytest.mark.parametrize("variant", ["llama", "qwen3_biases", "qwen2"])
def test_an_int8_model_is_near_the_original(variant: str, tmp_path: Path) -> None:
    reference = make_reference(variant)
    directory = save(reference, tmp_path)
    _, config = load(directory)
    model = LlamaForCausalLM(config, max_positions=256, placement=INT8)
    files = sorted(directory.glob("*.safetensors"))
    load_weights(model.destinations(), files, ignore=model.ignores, progress=lambda _done, _total: None)
    tokens = [7 * i % 128 for i in range(48)]
    logits = PagedExecution(model, config).sequence(tokens, [40, 8], range(4))
    expected = reference_logits(reference, tokens)
    assert (logits - expected).norm() / expected.norm() < 0.1


def test_dummy_weights_are_the_same_noise_in_every_format() -> None:
    plain, int8 = (placement.new_weight(N, K, bias=True) for placement in (PLAIN, INT8))
    for new in (plain, int8):
        bias = new.bias(0, N)
        assert bias is not None
        fill_dummy_weights({"a.weight": new.rows(0, N), "a.bias": bias}, seed=5)
    assert isinstance(plain.weight, LinearWeight)
    values, error = dequantized(int8)
    assert ((values - plain.weight.values).abs() <= error).all()
    assert plain.weight.bias is not None
    assert int8.weight.bias is not None
    assert int8.weight.bias.equal(plain.weight.bias)
