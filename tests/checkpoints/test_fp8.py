"""Checkpoints in FP8: each tensor is its values times their scales, in whatever format it is then kept."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from app.kernels import dispatch
from app.models.architectures import parse_config
from app.models.config import ConfigError
from app.models.quantization import Fp8Scales
from app.quality.quantize import write as write_int8
from app.quant.destination import Extent
from app.runner.model_runner import ModelRunner
from app.store.files import find_weights, read_model
from tests.checkpoints.fp8_files import FILE, Grid, in_blocks, per_output, per_tensor, quantized, spread, write_fp8
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.expert_files import save_stacks
from tests.models.parity import close
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, engine_config, run, runner_of
from tests.runner.ranks import run_on_ranks
from tests.store.tiny import VOCAB, write_tokenizer

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [48, 40]}
WHOLE = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    """As llm-compressor writes it."""
    of_weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False, **weights}
    activations = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": of_weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    }


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, 1)


ANY = Fp8Scales(per_tensor=True, per_output=True, blocks=(4, 3))


def stored_of(tmp_path: Path, tensors: dict[str, Tensor], scales: Fp8Scales | None = ANY) -> dict[str, Any]:
    save_file(tensors, tmp_path / FILE)
    return {stored.name: stored for stored in iter_weights([tmp_path / FILE], fp8=scales)}


@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (11, 13), (3, 2), (1, 1), (3, 10, 7)])
@pytest.mark.parametrize("grid", [in_blocks(4, 3), per_output, per_tensor])
@pytest.mark.parametrize("end", ["_scale_inv", "_scale"])
def test_a_tensor_is_its_values_times_their_scales(
    shape: tuple[int, ...], grid: Grid, end: str, tmp_path: Path
) -> None:
    """In blocks whose edges are smaller too; and so is any extent, which ranks and fused projections read alone."""
    torch.manual_seed(0)
    steps = grid(shape)
    values, scale = quantized(torch.randn(shape), steps)
    listed = stored_of(tmp_path, {"w": values, f"w{end}": scale, "other": torch.ones(3)})
    assert set(listed) == {"w", "other"}
    expected = values.float() * spread(scale, shape, steps)
    assert listed["w"].read().dtype == torch.float32
    assert listed["w"].read().equal(expected)
    for dim in (0, 1):
        for start in range(shape[dim]):
            for stop in range(start + 1, shape[dim] + 1):
                extent = Extent(dim, start, stop)
                assert listed["w"].read(extent).equal(extent.of(expected)), extent


def test_every_value_is_itself(tmp_path: Path) -> None:
    """NaN and subnormal ones too, and in tensors of more values than are widened at once."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = every[every.float().isfinite()]
    values = torch.cat([finite.repeat(300), every])[None]
    read = stored_of(tmp_path, {"w": values, "w_scale": torch.ones(())})["w"].read()
    torch.testing.assert_close(read, values.float(), rtol=0, atol=0, equal_nan=True)
    assert int(read.isnan().sum()) == 2


@pytest.mark.parametrize("grid", [in_blocks(4, 3), per_output, per_tensor])
def test_transformers_widens_to_the_same(grid: Grid, tmp_path: Path) -> None:
    """Where blocks are whole: it takes those at the edges to be as large as the others."""
    values, scale = quantized(torch.randn(8, 9), grid((8, 9)))
    theirs = Fp8Dequantize(None).convert({"weight": values, "weight_scale_inv": scale})
    assert stored_of(tmp_path, {"w": values, "w_scale_inv": scale})["w"].read().equal(theirs["weight"])


@pytest.mark.parametrize("form", [(), (1,), (1, 1)])
def test_one_scale_has_several_forms(form: tuple[int, ...], tmp_path: Path) -> None:
    values = torch.randn(5, 6).to(torch.float8_e4m3fn)
    listed = stored_of(tmp_path, {"w": values, "w_scale": torch.full(form, 0.25)}, Fp8Scales(per_tensor=True))
    assert listed["w"].read().equal(values.float() / 4)


@pytest.mark.parametrize("form", [(5,), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.uint8])
def test_scales_of_every_type(form: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    """Bytes are exponents."""
    values, powers = torch.randn(5, 6).to(torch.float8_e4m3fn), torch.tensor([-3, -1, 0, 2, 5])
    factors = torch.exp2(powers.float())
    stored = (powers + 127).to(dtype) if dtype == torch.uint8 else factors.to(dtype)
    listed = stored_of(tmp_path, {"w": values, "w_scale_inv": stored.view(form)})
    assert listed["w"].read().equal(values.float() * factors[:, None])


def test_a_scale_may_lie_in_another_file(tmp_path: Path) -> None:
    values, scale = quantized(torch.randn(6, 6), (4, 3))
    save_file({"w_scale_inv": scale}, tmp_path / "a.safetensors")
    save_file({"w": values}, tmp_path / "b.safetensors")
    (stored,) = iter_weights([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], fp8=ANY)
    assert stored.read().equal(values.float() * spread(scale, (6, 6), (4, 3)))
    save_file({"w_scale_inv": scale}, tmp_path / "b.safetensors")
    save_file({"w": values, "w_scale_inv": scale}, tmp_path / "a.safetensors")
    with pytest.raises(WeightError, match=r"b\.safetensors: tensor 'w_scale_inv' is also in .*a\.safetensors"):
        list(iter_weights([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], fp8=ANY))


def test_scales_of_activations_and_caches_are_left_out(tmp_path: Path) -> None:
    values, scale = quantized(torch.randn(6, 6), (6, 6))
    beside = ("input_scale", "activation_scale", "output_scale", "input_scale_ub", "k_scale", "v_scale", "q_scale")
    stored = {"m.weight": values, "m.weight_scale": scale, **{f"m.{name}": torch.ones(()) for name in beside}}
    assert set(stored_of(tmp_path, stored)) == {"m.weight"}


E4M3 = torch.ones(8, 9).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("scales", "said", "message"),
    [
        ({}, ANY, "'w' is in FP8 and has no scale 'w_scale_inv'"),
        ({"w_scale": torch.ones(()), "w_scale_inv": torch.ones(())}, ANY, "'w' is in FP8 and has more than one scale"),
        (
            {"w_scale_inv": torch.ones(2, 2)},
            ANY,
            r"'w_scale_inv' of shape \[2, 2\] is no scale of all of it or each row",
        ),
        ({"w_scale_inv": torch.ones(2, 3, 1)}, ANY, r"of shape \[2, 3, 1\] is no scale"),
        ({"w_scale_inv": torch.ones(9)}, ANY, r"or each block of 4 x 3 of 'w', whose shape is \[8, 9\]"),
        ({"w_scale_inv": torch.ones(1, 9)}, ANY, "is no scale of"),
        ({"w_scale_inv": torch.ones(8, 1)}, Fp8Scales(per_tensor=True), "is no scale of all of it of 'w'"),
        ({"w_scale_inv": torch.ones(())}, Fp8Scales(per_output=True), "is no scale of each row of 'w'"),
        ({"w_scale_inv": torch.ones(())}, Fp8Scales(blocks=(4, 3)), "is no scale of each block of 4 x 3 of 'w'"),
        ({"w_scale_inv": torch.ones(())}, None, "'w' is in FP8, of which config.json has no quantization_config"),
    ],
)
def test_a_scale_that_does_not_fit_is_an_error(
    scales: dict[str, Tensor], said: Fp8Scales | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightError, match=message) as caught:
        stored_of(tmp_path, {"w": E4M3, **scales}, said)
    assert FILE in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8,), (2, 2, 2, 2), (0, 4)])
def test_what_is_no_matrix_is_an_error(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="is no scale"):
        stored_of(tmp_path, {"w": torch.ones(shape).to(torch.float8_e4m3fn), "w_scale": torch.ones(())})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_a_scale_that_is_none_is_an_error(value: float, tmp_path: Path) -> None:
    scale = torch.ones(2, 3)
    scale[1, 2] = value
    listed = stored_of(tmp_path, {"w": E4M3, "w_scale_inv": scale})
    with pytest.raises(WeightError, match="'w_scale_inv' holds what is no scale"):
        listed["w"].read()
    assert listed["w"].read(Extent(0, 0, 4)).equal(E4M3[:4].float()), "which another rank reads"


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int32])
def test_other_types_are_an_error(dtype: torch.dtype, tmp_path: Path) -> None:
    listed = stored_of(tmp_path, {"w": torch.ones(4, 4).to(dtype)})
    with pytest.raises(WeightError, match="tensor 'w' has type"):
        listed["w"].read()
    scaled = stored_of(tmp_path, {"w": E4M3, "w_scale": torch.ones(()).to(torch.int32)})
    with pytest.raises(WeightError, match="tensor 'w_scale' has type I32"):
        scaled["w"].read()


LLAMA = {"architectures": ["LlamaForCausalLM"]}


def scales_of(quantization: dict[str, Any]) -> Fp8Scales | None:
    return parse_config({**make_reference("llama").config.to_dict(), **LLAMA, "quantization_config": quantization}).fp8


@pytest.mark.parametrize(
    ("quantization", "scales"),
    [
        (BLOCKS, Fp8Scales(blocks=(48, 40))),
        (WHOLE, Fp8Scales(per_tensor=True, per_output=True)),
        ({"quant_method": "fp8"}, Fp8Scales(per_tensor=True, per_output=True, blocks=(128, 128))),
        (FBGEMM, Fp8Scales(per_output=True)),
        (compressed("tensor"), Fp8Scales(per_tensor=True)),
        (compressed("channel"), Fp8Scales(per_output=True)),
        (compressed("block", block_structure=[128, 64]), Fp8Scales(blocks=(128, 64))),
        ({**compressed("channel"), "format": "naive-quantized"}, Fp8Scales(per_output=True)),
        ({**compressed("channel", type="int"), "format": "int-quantized"}, None),
        (None, None),
        ({}, None),
    ],
)
def test_what_a_config_says_of_scales(quantization: Any, scales: Fp8Scales | None) -> None:
    assert scales_of(quantization) == scales


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantization_config = 'gptq' is not supported: weights are read in FP8"),
        ({"quant_method": "awq", "bits": 4}, "quantization_config = 'awq' is not supported: weights are read in FP8"),
        ({"quant_method": "modelopt"}, "'modelopt' is not supported"),
        ({"bits": 4}, "quantization_config = None is not supported as it is"),
        ([8], r"quantization_config = \[8\] is not supported as it is"),
        ({**BLOCKS, "weight_block_size": [128]}, "weight_block_size"),
        ({**BLOCKS, "weight_block_size": [128, 0]}, "weight_block_size"),
        ({**BLOCKS, "fmt": "e5m2"}, "e5m2"),
        ({**BLOCKS, "expert_dtype": "fp4"}, "fp4"),
        ({**compressed("tensor"), "format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({**compressed("tensor"), "format": "int-quantized"}, "weights of types"),
        ({**compressed("tensor"), "transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        ({**compressed("tensor"), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({**compressed("tensor"), "config_groups": {}}, "weights of types"),
        (compressed("group", group_size=32), "'group'"),
        (compressed("block"), "block_structure"),
        (compressed("channel", num_bits=4), "num_bits"),
        (compressed("channel", symmetric=False), "symmetric"),
        (compressed("tensor", type="int"), "weights of types"),
    ],
)
def test_other_methods_are_an_error_that_names_what_is_read(quantization: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        scales_of(quantization)
    assert "'fp8', 'fbgemm_fp8', 'compressed-tensors'" in str(caught.value)


def tokens(runner: ModelRunner) -> list[list[int]]:
    """Of two greedy sequences, the second's prompt in chunks."""
    requests = [Request(0, [3, 1, 4], [0, 1]), Request(1, [7 * i % 97 for i in range(40)], [2, 3, 4, 5])]
    run(runner, requests, 12, chunk=16)
    assert [request.error for request in requests] == [None, None]
    return [request.outputs for request in requests]


SERVED: dict[str, tuple[str, dict[str, Any], Grid, dict[str, Any]]] = {
    "blocks": ("qwen3_biases", BLOCKS, in_blocks(48, 40), {}),
    "one of each": ("llama", WHOLE, per_tensor, {"shape_of_scale": lambda scale: scale.view(())}),
    "one of each row": ("llama_biases", compressed("channel"), per_output, {"end": "_scale"}),
    "fbgemm": ("qwen2", FBGEMM, per_output, {"end": "_scale"}),
    "fused projections": ("phi3", BLOCKS, in_blocks(48, 40), {}),
    "head and embedding too": ("llama_biases", BLOCKS, in_blocks(48, 40), {"kept": ()}),
    "an embedding that is the head": ("llama", BLOCKS, in_blocks(48, 40), {"kept": ()}),
    "experts": ("qwen3moe", BLOCKS, in_blocks(48, 40), {}),
    "experts by rows": ("mixtral", compressed("channel"), per_output, {"end": "_scale"}),
    "latents and experts": ("deepseek_v3_experts", BLOCKS, in_blocks(48, 40), {}),
}


REFERENCE: dict[str, Any] = {"kernels": "reference"}
BFLOAT16: dict[str, Any] = {"dtype": "bfloat16"}
INT8: dict[str, Any] = {"quantization": "int8"}
IN_FORMATS: dict[str, dict[str, Any]] = {
    "blocks": REFERENCE,
    "one of each": BFLOAT16,
    "one of each row": BFLOAT16,
    "fbgemm": REFERENCE,
    "fused projections": REFERENCE,
    "head and embedding too": BFLOAT16,
    "an embedding that is the head": REFERENCE,
    "experts": REFERENCE,
    "experts by rows": BFLOAT16,
    "latents and experts": BFLOAT16,
}
"""Beside int8, to which each is quantised anew: how the values were stored and how they are kept are two things."""


@pytest.mark.parametrize("case", SERVED)
def test_it_serves_the_tokens_of_the_widened_one(case: str, tmp_path: Path) -> None:
    variant, quantization, grid, how = SERVED[case]
    fp8, widened = write_fp8(save(make_reference(variant), tmp_path / "floating"), tmp_path, quantization, grid, **how)
    assert {tensor.dtype for tensor in load_file(fp8 / FILE).values()} >= {torch.float8_e4m3fn}
    for formats in (IN_FORMATS[case], INT8):
        assert tokens(runner_of(fp8, **formats)) == tokens(runner_of(widened, **formats)), formats


def test_it_is_the_model_that_transformers_makes_of_the_widened_one(tmp_path: Path) -> None:
    fp8, widened = write_fp8(
        save(make_reference("qwen3_biases"), tmp_path / "floating"), tmp_path, BLOCKS, in_blocks(48, 40)
    )
    close(served_logprobs(runner_of(fp8, kernels="reference")), expected_logprobs(widened))


def test_stacks_of_experts(tmp_path: Path) -> None:
    """As transformers has them in memory: of all experts in one tensor, and its scales."""
    source = save_stacks(make_reference("qwen3moe"), tmp_path / "floating")
    fp8, widened = write_fp8(source, tmp_path, BLOCKS, in_blocks(48, 40))
    assert load_file(fp8 / FILE)["model.layers.0.mlp.experts.gate_up_proj_scale_inv"].dim() == 3
    assert tokens(runner_of(fp8)) == tokens(runner_of(widened))


@pytest.mark.parametrize("variant", ["llama_biases", "mixtral"])
@pytest.mark.parametrize(("quantization", "grid"), [(BLOCKS, in_blocks(48, 40)), (FBGEMM, per_output)])
def test_ranks_read_their_shares(variant: str, quantization: dict[str, Any], grid: Grid, tmp_path: Path) -> None:
    source = save(make_reference(variant), tmp_path / "floating")
    fp8, widened = write_fp8(source, tmp_path, quantization, grid, end="_scale")
    shares = run_on_ranks(engine_config(fp8, tensor_parallel_size=2), tmp_path / "meeting", tokens)
    assert shares == [tokens(runner_of(widened))] * 2


def test_one_line_says_what_it_is_served_as(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where packed weights are found that were kept; they are of the scales that the config says alone."""
    fp8, _ = write_fp8(save(make_reference("llama"), tmp_path / "floating"), tmp_path, WHOLE, per_tensor)
    cache = str(tmp_path / "packed")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            runner_of(fp8, quantization="int8", packed_cache=cache)
        (said,) = [record.getMessage() for record in caplog.records if "FP8" in record.getMessage()]
        assert re.fullmatch("weights that are stored as FP8 are served as (packed )?int8", said)
    config = json.loads((fp8 / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [16, 16]
    (fp8 / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightError, match="is no scale of each block of 16 x 16"):
        runner_of(fp8, quantization="int8", packed_cache=cache)


def test_an_int8_checkpoint_can_be_made_of_it(tmp_path: Path) -> None:
    source = save(make_reference("qwen3_biases", vocab_size=len(VOCAB)), tmp_path / "floating")
    fp8, widened = write_fp8(source, tmp_path, BLOCKS, in_blocks(48, 40))
    for directory in (fp8, widened):
        write_tokenizer(directory / "tokenizer.json")
        write_int8(read_model("model", directory, find_weights(directory)), tmp_path / f"{directory.name}-int8")
    one, two = (load_file(tmp_path / f"{name}-int8" / FILE) for name in ("fp8", "widened"))
    assert one.keys() == two.keys()
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
