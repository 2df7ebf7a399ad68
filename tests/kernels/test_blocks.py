"""Weights in the blocks of their file: kept bit for bit, and multiplied natively on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.blocks import LAYOUTS, allocate_blocks, new_block_weight, pack_blocks, pack_rows
from app.kernels.blocks.reference import matmul_blocks, unpack_blocks
from app.kernels.embed import embed
from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.int8 import quantize, quantize_groups
from app.kernels.linear import Activation, linear
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.kernels.types import Act, ActFormat, BlockWeight, StepArena
from tests.kernels.blocks import TYPES, make_block_weight, random_blocks, values_of
from tests.kernels.util import (
    activated64,
    dequantize,
    poisoned,
    poisoned_act,
    quantized,
    randn,
    relative_error,
)


def _isas() -> list[str]:
    try:
        return list(ISAS[ISAS.index(best_isa()) :])
    except NativeError:
        return []


pytestmark = pytest.mark.skipif(not _isas(), reason="no native kernels here")
ROWS = [0, 1, 2, 3, 7, 8, 13, 200]
WIDTHS = {name: 512 if LAYOUTS[name].block == 256 else 96 for name in TYPES}
"""An odd number of groups where the type allows it."""


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    dispatch.configure(dispatch.Mode.AUTO, 2, isa=request.param)
    yield request.param
    dispatch.configure(dispatch.Mode.AUTO, 1)


def run(
    x: Act,
    weight: BlockWeight,
    dtype: torch.dtype = torch.float32,
    residual: Tensor | None = None,
    activation: Activation = Activation.NONE,
) -> Act:
    width = weight.out_features // (2 if weight.gate_up else 1)
    out = poisoned_act(x.values.shape[0], width, dtype)
    scratch = poisoned(x.values.shape[0], width) if dtype is torch.int8 else None
    linear(x, weight, out, residual=residual, activation=activation, scratch=scratch)
    return out


# -- kept bit for bit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate_up", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_values_are_the_files_bit_for_bit(name: str, gate_up: bool) -> None:
    weight, values = make_block_weight(name, 150, WIDTHS[name], gate_up=gate_up)
    plain = unpack_blocks(weight)
    assert torch.equal(plain.values(), values)
    assert plain.bias is not None
    assert torch.equal(plain.bias, randn(150, seed=3))


@pytest.mark.parametrize("gate_up", [False, True])
def test_rows_come_in_any_cut_and_order(gate_up: bool) -> None:
    blocks = random_blocks("Q5_K", 150, 256)
    weight = new_block_weight(150, 256, bias=False, gate_up=gate_up)
    allocate_blocks(weight, {(0, 150): "Q5_K"})
    for start, stop in [(149, 150), (0, 3), (3, 100), (100, 149)]:
        pack_blocks(weight, start, "Q5_K", blocks[start:stop])
    assert torch.equal(unpack_blocks(weight).values(), values_of("Q5_K", blocks))


@pytest.mark.parametrize("name", TYPES)
def test_a_row_takes_the_bytes_that_its_layout_says(name: str) -> None:
    weight, _ = make_block_weight(name, 64, 512, bias=False)
    assert weight.data.numel() == 64 * LAYOUTS[name].row_bytes(512)
    # Scales of scales, which are 6 bits in files, are 8 in memory.
    file_bytes = 512 // LAYOUTS[name].block * LAYOUTS[name].file_bytes
    assert file_bytes <= LAYOUTS[name].row_bytes(512) <= file_bytes * 1.03


def test_types_may_differ_by_panels() -> None:
    weight = new_block_weight(80, 256, bias=False, gate_up=False)
    parts = {(0, 32): "Q4_K", (32, 48): "Q6_K", (48, 64): "Q5_0"}
    assert allocate_blocks(weight, parts)
    rows = randn(8, 256)
    kept = [random_blocks(name, stop - start, 256, start) for (start, stop), name in parts.items()]
    for ((start, _), name), blocks in zip(parts.items(), kept, strict=True):
        pack_blocks(weight, start, name, blocks)
    assert weight.panels[:, 1].tolist() == [LAYOUTS[name].code for name in ("Q4_K", "Q4_K", "Q6_K", "Q5_0", "Q8_0")]
    with pytest.raises(ValueError, match="rows of Q8_0 in a panel of Q5_0"):
        pack_rows(weight, 60, rows)


def test_rows_of_two_types_in_a_panel_are_kept_whole() -> None:
    weight = new_block_weight(40, 64, bias=False, gate_up=False)
    assert not allocate_blocks(weight, {(0, 24): "Q4_0", (24, 40): "Q4_1"})
    assert weight.panels[:, 1].tolist() == [LAYOUTS[name].code for name in ("Q8_0", "Q8_0", "Q8_0")]


def test_floating_rows_become_bytes_with_a_scale_for_32() -> None:
    weight, rows = new_block_weight(40, 96, bias=False, gate_up=False), randn(40, 96)
    allocate_blocks(weight, {})
    pack_rows(weight, 0, rows)
    values, scale = quantize(rows.view(40, 3, 32), torch.float16)
    assert torch.equal(unpack_blocks(weight).values(), (values * scale.float()[..., None]).view(40, 96))


def test_refuses_what_does_not_fit() -> None:
    for n, k, gate_up in [(8, 48, False), (7, 32, True), (0, 32, False)]:
        with pytest.raises(ValueError):
            new_block_weight(n, k, bias=False, gate_up=gate_up)
    weight = new_block_weight(8, 96, bias=False, gate_up=False)
    allocate_blocks(weight, {(0, 8): "Q4_0"})
    with pytest.raises(ValueError, match="rows 4 to 9"):
        pack_blocks(weight, 4, "Q4_0", random_blocks("Q4_0", 5, 96))
    with pytest.raises(ValueError, match="cannot keep Q4_0"):
        pack_blocks(weight, 0, "Q4_0", random_blocks("Q4_0", 5, 64))
    with pytest.raises(ValueError, match="cannot keep Q4_K"):
        pack_blocks(weight, 0, "Q4_K", random_blocks("Q4_K", 5, 256))
    with pytest.raises(ValueError, match=r"linear: x is torch.float32"):
        linear(Act(randn(3, 96)), weight, poisoned_act(3, 8))


# -- multiplied -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_the_specification_is_the_product_of_the_files_values(name: str) -> None:
    weight, values = make_block_weight(name, 70, WIDTHS[name], bias=False)
    x = quantized(randn(5, WIDTHS[name], seed=1))
    assert relative_error(matmul_blocks(x, weight), dequantize(x) @ values.double().t()) < 1e-6


@pytest.mark.parametrize("name", TYPES)
def test_every_number_of_rows(isa: str, name: str) -> None:
    weight, values = make_block_weight(name, 85, WIDTHS[name])
    assert weight.bias is not None
    for tokens in ROWS:
        x, residual = quantized(randn(tokens, WIDTHS[name], seed=1)), randn(tokens, 85, seed=4)
        out = run(x, weight, residual=residual).values
        assert not out.isnan().any()
        expected = dequantize(x) @ values.double().t() + weight.bias[:85].double() + residual.double()
        assert tokens == 0 or relative_error(out, expected) < 1e-6


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("activation", [Activation.SILU_MUL, Activation.GELU])
def test_activations(isa: str, name: str, activation: Activation) -> None:
    n = 70
    weight, values = make_block_weight(name, n, WIDTHS[name], gate_up=activation.gated)
    assert weight.bias is not None
    bias = randn(n, seed=3).double()
    for tokens in (1, 9):
        x = quantized(randn(tokens, WIDTHS[name], seed=1))
        expected = activated64(dequantize(x) @ values.double().t() + bias, activation)
        assert relative_error(run(x, weight, activation=activation).values, expected) < 2e-6


@pytest.mark.parametrize("name", TYPES)
def test_a_row_does_not_depend_on_the_others_nor_on_threads(isa: str, name: str) -> None:
    k = 1280
    weight, _ = make_block_weight(name, 100, k)
    x = quantized(randn(205, k, seed=1))
    whole = run(x, weight).values
    for threads in (1, 3):
        dispatch.configure(dispatch.Mode.AUTO, threads, isa=isa)
        assert torch.equal(run(x, weight).values, whole)
    for start, stop in [(0, 1), (204, 205), (3, 5), (7, 14), (20, 84)]:
        part = Act(x.values[start:stop].clone(), x.scale[start:stop].clone() if x.scale is not None else None)
        assert torch.equal(run(part, weight).values, whole[start:stop])


@pytest.mark.parametrize("name", TYPES)
def test_sums_are_exact_at_the_extremes(isa: str, name: str) -> None:
    """Codes and activations as great as they come, and scales of 1."""
    k = 256
    layout = LAYOUTS[name]
    raw = torch.full((16, k // layout.block, layout.file_bytes), 255, dtype=torch.uint8)
    raw[8:] = 0
    one = torch.ones(1, dtype=torch.float16).view(torch.uint8)
    for at in {"Q6_K": (208,), "MXFP4": ()}.get(name, (0, 2) if layout.has_min else (0,)):
        raw[..., at : at + 2] = one
    if name == "MXFP4":
        raw[..., 0] = 128
    weight = new_block_weight(16, k, bias=False, gate_up=False)
    allocate_blocks(weight, {(0, 16): name})
    blocks = raw.view(16, -1)
    pack_blocks(weight, 0, name, blocks)
    for value in (127, -127):
        x = Act(torch.full((9, k), value, dtype=torch.int8), torch.ones(9, k // 64))
        assert torch.equal(run(x, weight).values.double(), dequantize(x) @ values_of(name, blocks).double().t())


def test_parts_of_several_types_are_one_product(isa: str) -> None:
    weight = new_block_weight(96, 256, bias=False, gate_up=False)
    parts = {(0, 32): "Q4_K", (32, 48): "Q6_K", (48, 96): "IQ4_NL"}
    allocate_blocks(weight, parts)
    values = []
    for (start, stop), name in parts.items():
        blocks = random_blocks(name, stop - start, 256, start)
        pack_blocks(weight, start, name, blocks)
        values.append(values_of(name, blocks))
    for tokens in (1, 20):
        x = quantized(randn(tokens, 256, seed=1))
        assert relative_error(run(x, weight).values, dequantize(x) @ torch.cat(values).double().t()) < 1e-6


def test_rounds_once_to_its_output(isa: str) -> None:
    weight, _ = make_block_weight("Q4_1", 70, 96)
    x = quantized(randn(9, 96, seed=1))
    exact = run(x, weight).values
    assert torch.equal(run(x, weight, torch.bfloat16).values, exact.bfloat16())
    out, (values, scale) = run(x, weight, torch.int8), quantize_groups(exact)
    assert torch.equal(out.values, values)
    assert out.scale is not None
    assert torch.equal(out.scale, scale)


def test_a_nan_stays_in_its_row(isa: str) -> None:
    weight, _ = make_block_weight("Q4_K", 70, 256)
    x = randn(7, 256)
    x[3, 5] = float("nan")
    assert run(quantized(x), weight).values.isnan().all(dim=-1).tolist() == [row == 3 for row in range(7)]


def test_a_head_gathers_its_rows(isa: str) -> None:
    weight, values = make_block_weight("Q6_K", 85, 256, bias=False)
    hidden, indices = randn(6, 256, seed=1), torch.tensor([4, 0, 5])
    arena = StepArena(6, torch.device("cpu"), 3)
    arena.begin(6)
    out = poisoned(3, 85)
    scratch = arena.take_act(256, torch.int8, ActFormat.INT8)
    scratch = Act(scratch.values[:3], None if scratch.scale is None else scratch.scale[:3])
    gather_lm_head(hidden, indices, weight, out, scratch=scratch)
    assert relative_error(out, dequantize(quantized(hidden[indices])) @ values.double().t()) < 1e-6


@pytest.mark.parametrize("name", TYPES)
def test_a_table_gives_the_files_values(isa: str, name: str) -> None:
    table, values = make_block_weight(name, 37, 256, bias=False)
    tokens = torch.tensor([36, 0, 5, 5, 16, 99, -1])
    expected = torch.where(((tokens >= 0) & (tokens < 37))[:, None], values[tokens.clamp(0, 36)], 0.0)
    out, rounded = poisoned(7, 256), poisoned(7, 256, dtype=torch.bfloat16)
    embed(tokens, table, out)
    assert torch.equal(out, expected)
    embed(tokens + 40, table, rounded, first=40, scale=3.0)
    assert torch.equal(rounded, (expected * 3.0).bfloat16())
