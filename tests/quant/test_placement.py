"""Weights keep what a checkpoint holds, in whatever format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from app.checkpoints.dummy import fill_dummy_weights
from app.checkpoints.int8 import write_int8_checkpoint
from app.checkpoints.loader import load_weights
from app.kernels.int8 import quantize
from app.kernels.types import ActFormat, LinearWeight
from app.layers.blocks import Mlp, SelfAttention
from app.layers.linear import Linear
from app.models.architectures import find
from app.models.config import ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.quant.destination import Elsewhere, Extent, Part, Tee
from app.quant.placement import NewWeight, Placement, WeightFormat
from tests.models.tiny import CPU, PagedExecution, load, make_reference, reference_logits, save

N, K = 12, 20
PLAIN = Placement(torch.float32, CPU)
INT8 = Placement(torch.float32, CPU, WeightFormat.INT8)
W8A8 = Placement(torch.float32, CPU, WeightFormat.W8A8)
W8A16 = Placement(torch.float32, CPU, WeightFormat.W8A16)


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


def test_a_part_keeps_its_extent_of_a_whole_tensor() -> None:
    kept = torch.empty(3, 2)
    part = Part(kept, Extent(1, 2, 4), 6)
    assert (tuple(part.shape), part.numel(), part.nbytes) == ((3, 6), 18, 24)
    part.copy_(torch.arange(18.0).view(3, 6))
    assert kept.tolist() == [[2, 3], [8, 9], [14, 15]]


def test_what_is_elsewhere_takes_nothing() -> None:
    elsewhere = Elsewhere(5)
    elsewhere.copy_(torch.ones(5))
    assert (tuple(elsewhere.shape), elsewhere.numel(), elsewhere.nbytes) == ((5,), 5, 0)


@pytest.mark.parametrize(
    ("weight_format", "row_bytes"),
    [
        (WeightFormat.PLAIN, 4 * K),
        (WeightFormat.INT8, K + 4),
        (WeightFormat.W8A8, K + 4),
        (WeightFormat.W8A16, K + 4),
        (WeightFormat.PACKED_INT8, K + 4),
        (WeightFormat.PACKED_BF16, 2 * K),
    ],
)
def test_sizes_are_known_before_anything_is_allocated(weight_format: WeightFormat, row_bytes: int) -> None:
    placement = Placement(torch.float32, torch.device("meta"), weight_format)
    assert placement.new_weight(N, K, bias=False).rows(0, N).nbytes == N * row_bytes


def test_rows_are_quantised_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.randn(N, K, dtype=torch.bfloat16)
    whole, pieces = INT8.new_weight(N, K, bias=False), INT8.new_weight(N, K, bias=False)
    whole.rows(0, N).copy_(source)
    quantized = list[int]()

    def counting(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantized.append(x.shape[0])
        return quantize(x)

    monkeypatch.setattr("app.quant.formats.int8.quantize", counting)
    monkeypatch.setattr("app.quant.formats.int8._CHUNK_ELEMENTS", 5 * K + 1)
    pieces.rows(0, N).copy_(source)
    assert quantized == [5, 5, 2]
    assert all(map(torch.equal, dequantized(pieces), dequantized(whole)))


@pytest.mark.parametrize(
    ("placement", "fmt"), [(INT8, ActFormat.INT8), (W8A8, ActFormat.INT8_TOKEN), (W8A16, ActFormat.FLOAT)]
)
def test_a_weight_says_which_input_it_wants(placement: Placement, fmt: ActFormat) -> None:
    assert placement.new_weight(N, K, bias=False).weight.act_format is fmt


def model_of(reference: PreTrainedModel, directory: Path, placement: Placement) -> tuple[DecoderStack, ModelConfig]:
    """The model with its weights in another placement."""
    _, config = load(save(reference, directory))
    return filled(config, directory, placement), config


def filled(config: ModelConfig, directory: Path, placement: Placement) -> DecoderStack:
    """A model with a checkpoint's weights."""
    model = find(config.architecture).build(config, max_positions=256, placement=placement)
    assert isinstance(model, DecoderStack)
    files = sorted(directory.glob("*.safetensors"))
    load_weights(model.destinations(), files, ignore=model.ignores, progress=lambda _done, _total: None)
    return model


def linears_of(layer: DecoderLayer) -> tuple[Linear, Linear]:
    """One of its attention, one of its MLP."""
    assert isinstance(layer.mixer, SelfAttention)
    assert isinstance(layer.mlp, Mlp)
    return layer.mixer.qkv_proj, layer.mlp.down_proj


def error_of(
    model: DecoderStack, config: ModelConfig, reference: PreTrainedModel, chunks: Sequence[int] = (40, 8)
) -> float:
    """Of logits, relative to their norm."""
    tokens = [7 * i % 128 for i in range(sum(chunks))]
    logits = PagedExecution(model, config).sequence(tokens, list(chunks), range(4))
    expected = reference_logits(reference, tokens)
    return float((logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("placement", [INT8, W8A8, W8A16])
@pytest.mark.parametrize("variant", ["llama", "qwen3_biases", "qwen2"])
def test_an_int8_model_is_near_the_original(variant: str, placement: Placement, tmp_path: Path) -> None:
    reference = make_reference(variant)
    assert 0 < error_of(*model_of(reference, tmp_path, placement), reference) < 0.1


@pytest.mark.parametrize("placement", [W8A8, W8A16])
def test_triton_computes_the_model_that_the_reference_does(
    placement: Placement, tmp_path: Path, interpreted: None
) -> None:
    reference = make_reference("qwen3_biases", num_hidden_layers=1)
    assert 0 < error_of(*model_of(reference, tmp_path, placement), reference, (5, 1)) < 0.1


def test_a_gpu_keeps_the_values_of_an_int8_checkpoint(tmp_path: Path) -> None:
    original, config = model_of(make_reference("qwen3_biases"), tmp_path, W8A8)
    directory = tmp_path / "int8"
    directory.mkdir()
    source = json.loads((tmp_path / "config.json").read_text())
    write_int8_checkpoint(
        source, sorted(tmp_path.glob("*.safetensors")), directory, progress=lambda _done, _total: None
    )
    reloaded = filled(config, directory, W8A8)
    for ours, theirs in zip(original.layers, reloaded.layers, strict=True):
        for one, other in zip(linears_of(ours), linears_of(theirs), strict=True):
            assert isinstance(one.weight, LinearWeight)
            assert isinstance(other.weight, LinearWeight)
            assert one.weight.values.equal(other.weight.values)
            assert one.weight.scale is not None
            assert other.weight.scale is not None
            assert torch.allclose(one.weight.scale, other.weight.scale, rtol=1e-6)


@pytest.mark.parametrize("placement", [W8A8, W8A16])
@pytest.mark.parametrize("variant", ["llama", "qwen3"])
def test_a_gpu_keeps_embedding_and_head_whole(variant: str, placement: Placement, tmp_path: Path) -> None:
    reference = make_reference(variant)
    model, config = model_of(reference, tmp_path, placement)
    head = model.lm_head.weight
    assert isinstance(head, LinearWeight)
    assert head.values.equal(reference.lm_head.weight)
    assert (head.values is model.embedding.table) == config.tie_word_embeddings


def test_the_layers_of_a_gpus_model_share_a_workspace(tmp_path: Path) -> None:
    model, _ = model_of(make_reference("llama"), tmp_path, W8A8)
    weights = [linear.weight for layer in model.layers for linear in linears_of(layer)]
    workspaces = {id(weight.workspace) for weight in weights if isinstance(weight, LinearWeight)}
    assert len(workspaces) == 1
    assert W8A8.workspace is None


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
