"""Weights that stay in the blocks of their GGUF file, from the file to a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from app.contract.config import EngineConfig
from app.kernels import dispatch
from app.kernels.blocks.reference import unpack_blocks
from app.kernels.types import BlockWeight, LinearWeight, Weight
from app.models.base import Decoder
from app.models.decoder import DecoderStack
from app.quant.destination import Extent, Interleaved, PairsApart, Part, Scaled, Transposed
from app.quant.formats.blocks import NewBlockWeight
from app.quant.placement import Placement, WeightFormat
from app.quant.stored_blocks import block_parts
from app.runner.errors import RunnerError
from app.runner.loading import load_model, read_model_config, with_block_types
from tests.kernels.blocks import random_blocks, values_of
from tests.models.gguf_model import permuted, resolved, write_model
from tests.models.tiny import make_reference, save
from tests.quant.test_placement import linears_of
from tests.runner.driver import Request, engine_config, run, runner_of

pytestmark = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")
TYPES = {
    "token_embd.weight": Type.Q5_1,
    "output.weight": Type.Q8_0,
    **{
        f"blk.{layer}.{name}.weight": kind
        for layer in range(2)
        for name, kind in {
            "attn_q": Type.Q4_0,
            "attn_k": Type.Q4_1,
            "attn_v": Type.Q8_0,
            "attn_output": Type.Q5_0,
            "ffn_gate": Type.Q4_1,
            "ffn_up": Type.MXFP4,
            "ffn_down": Type.Q4_0,
        }.items()
    },
}
OPTIONS: dict[str, Any] = {"quantization": "file", "kernels": "strict", "kv_cache_dtype": "int8"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """Of a Llama whose tensors are of several types, those of one layer too."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    reference = make_reference("llama", hidden_size=64, num_hidden_layers=2, tie_word_embeddings=False, **heads)
    path = tmp_path_factory.mktemp("blocks") / "m.gguf"
    files = resolved(write_model(path, reference, gguf.MODEL_ARCH.LLAMA, {}, stored=permuted(reference), types=TYPES))
    return engine_config(files.directory, weights=tuple(map(str, files.weights)), **OPTIONS)


def loaded(config: EngineConfig, weight_format: WeightFormat, cache: Path | None = None) -> DecoderStack:
    placement = Placement(torch.float32, torch.device("cpu"), weight_format)
    model_config = read_model_config(Path(config.model_dir))
    kept = None if cache is None else str(cache)
    model: Decoder = load_model(
        model_config,
        engine_config(Path(config.model_dir), weights=config.weights, packed_cache=kept),
        max_positions=64,
        placement=with_block_types(placement, config, model_config),
        progress=lambda _done, _total: None,
    )
    assert isinstance(model, DecoderStack)
    return model


def weights_of(model: DecoderStack) -> list[Weight]:
    heads = [] if model.embedding.head_weight is None else [model.embedding.head_weight]
    return [*heads, model.lm_head.weight, *(each.weight for layer in model.layers for each in linears_of(layer))]


def values(weight: Weight) -> torch.Tensor:
    if isinstance(weight, BlockWeight):
        return unpack_blocks(weight).values()
    assert isinstance(weight, LinearWeight)
    return weight.values


def test_a_model_has_the_files_weights_bit_for_bit(config: EngineConfig, tmp_path: Path) -> None:
    expected, model = loaded(config, WeightFormat.PLAIN), loaded(config, WeightFormat.BLOCKS, tmp_path)
    found = list(map(values, weights_of(model)))
    assert len(found) == 6
    assert all(map(torch.equal, found, map(values, weights_of(expected))))
    assert len(list(tmp_path.glob("*.packed"))) == 1
    again = loaded(config, WeightFormat.BLOCKS, tmp_path)
    assert all(map(torch.equal, found, map(values, weights_of(again))))


def test_a_step_is_one_native_call_and_the_same_op_by_op(config: EngineConfig) -> None:
    outputs = []
    for eager in (False, True):
        runner = runner_of(Path(config.model_dir), weights=config.weights, **OPTIONS)
        if eager:
            runner.run_eagerly()
        else:
            names, _ = runner.profile_ops()
            assert names.count("block_linear") == 2 * 4 + 1
            assert {"linear", "embed"}.isdisjoint(names)
        request = Request(0, [7 * i % 128 for i in range(40)], list(range(8)))
        run(runner, [request], 6)
        outputs.append(request.outputs)
        assert runner.info.quantization == "file"
        assert runner.info.weight_bytes < runner.info.num_parameters * 7 // 8
    assert outputs[0] == outputs[1]


def test_what_cannot_be_served_so_is_refused(config: EngineConfig, tmp_path: Path) -> None:
    save(make_reference("llama"), tmp_path)
    with pytest.raises(RunnerError, match=r"quantised GGUF files, of which .* has none"):
        runner_of(tmp_path, **{**OPTIONS, "kernels": "auto"})
    with pytest.raises(RunnerError, match="quantization = 'file' is not for cpu"):
        runner_of(Path(config.model_dir), weights=config.weights, quantization="file", kernels="reference")
    dispatch.configure(dispatch.Mode.AUTO, 1)
    placement = Placement(torch.float32, torch.device("cpu"), WeightFormat.BLOCKS)
    two_ranks = engine_config(Path(config.model_dir), weights=config.weights, tensor_parallel_size=2, **OPTIONS)
    with pytest.raises(RunnerError, match="kept on one rank"):
        with_block_types(placement, two_ranks, read_model_config(Path(config.model_dir)))


def test_adapters_move_no_bits(config: EngineConfig) -> None:
    """Rows of a layer that has room for adapters are kept as those of one that has none."""
    runner = runner_of(Path(config.model_dir), weights=config.weights, max_adapters=1, **OPTIONS)
    model = runner._model
    assert isinstance(model, DecoderStack)
    expected = loaded(config, WeightFormat.BLOCKS)
    assert all(map(torch.equal, map(values, weights_of(model)), map(values, weights_of(expected))))


def test_rows_are_moved_and_never_computed_with() -> None:
    blocks = random_blocks("Q4_0", 64, 32)
    new = NewBlockWeight(64, 32, bias=False, gate_up=False)
    first, second = new.rows(0, 32), new.rows(32, 64)
    halves = Interleaved([PairsApart(first, 2, 16), second], groups=2)
    places = block_parts(halves, blocks)
    for place, _ in places:
        place.declare("Q4_0")
    for place, rows in places:
        place.copy_blocks("Q4_0", rows)
    turned, rest = torch.empty(32, 32), torch.empty(32, 32)
    Interleaved([PairsApart(turned, 2, 16), rest], groups=2).copy_(values_of("Q4_0", blocks))
    assert torch.equal(unpack_blocks(new.weight).values(), torch.cat((turned, rest)))
    (place, rows), *_ = block_parts(Part(first, Extent(0, 32, 64), 64), blocks)
    assert torch.equal(rows, blocks[32:])
    for changed in (Scaled(first, 2.0), Transposed(first), Part(first, Extent(1, 0, 32), 64)):
        assert block_parts(changed, blocks) == []
    assert block_parts(Interleaved([Scaled(first, 2.0), second]), blocks) == []


def test_types_that_are_not_kept_become_bytes() -> None:
    new = NewBlockWeight(32, 256, bias=False, gate_up=False)
    rows = new.rows(0, 32)
    (place, _), *_ = block_parts(rows, torch.empty(32, 1))
    place.declare("Q2_K")
    assert not place.takes("Q2_K")
    assert rows.nbytes == 32 * (256 + 8 * 2)


def test_a_width_that_no_block_divides_is_packed_int8() -> None:
    placement = Placement(torch.float32, torch.device("cpu"), WeightFormat.BLOCKS)
    assert placement.new_table(8, 36) is None
    assert not isinstance(placement.new_weight(8, 36, bias=False).weight, BlockWeight)
    assert placement.converts_to == "Q8_0 blocks, or packed int8"
