"""``linear`` in Triton: exact int8 products at every number of rows, and the epilogues against float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from app.kernels.int8 import quantize, quantize_tokens
from app.kernels.linear import Activation, linear, scratch_width
from app.kernels.types import Act, ActFormat, LinearWeight, SplitKWorkspace
from tests.kernels.util import (
    INT8_TOLERANCE,
    TOLERANCE,
    activated64,
    dequantize,
    linear64,
    poisoned,
    poisoned_act,
    randn,
    relative_error,
    steps,
)

pytestmark = pytest.mark.usefixtures("interpreted")
EPILOGUES = ["none", "bias", "residual", "bias+residual", "silu_mul", "bias+silu_mul", "gelu_tanh_mul", "bias+gelu"]
EPILOGUES += ["gelu_tanh", "relu2"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# (T, K, N): no multiple of a tile, single rows, and rows on both sides of tiles' heights.
SHAPES = [(1, 63, 34), (2, 1000, 62), (15, 576, 96), (16, 64, 34), (17, 300, 66), (65, 100, 130)]
VECTOR = (1, 1060, 10)
"""One row, whose outputs are several programs' and whose inputs are more than a block."""
CPU = torch.device("cpu")


def latin(shapes: Sequence[tuple[int, int, int]]) -> pytest.MarkDecorator:
    """Every pair of an epilogue, one of three shapes and a dtype; a third of all triples."""
    cases = [
        (epilogue, shape, FLOATS[(i + j) % len(FLOATS)])
        for i, epilogue in enumerate(EPILOGUES)
        for j, shape in enumerate(shapes)
    ]
    return pytest.mark.parametrize(("epilogue", "shape", "dtype"), cases)


def workspace() -> SplitKWorkspace:
    """What nobody wrote must not be read."""
    made = SplitKWorkspace.new(CPU)
    made.partials.fill_(torch.iinfo(torch.int32).max)
    return made


def small(n: int, k: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights [n, k] whose outputs are of order 1: NumPy warns of an exponential that overflows."""
    return (randn(n, k, seed=seed) / math.sqrt(k)).to(dtype)


def w8a8(n: int, k: int, *, bias: bool = False, split: bool = False) -> LinearWeight:
    return int8_weight(n, k, ActFormat.INT8_TOKEN, bias=bias, split=split)


def int8_weight(n: int, k: int, int8_input: ActFormat, *, bias: bool = False, split: bool = False) -> LinearWeight:
    values, scale = quantize(small(n, k, seed=2))
    return LinearWeight(
        values, scale, randn(n, seed=3) if bias else None, int8_input, workspace=workspace() if split else None
    )


def int8_x(tokens: int, k: int) -> Act:
    return Act(*quantize_tokens(randn(tokens, k, seed=1)))


def run(
    x: Act, weight: LinearWeight, epilogue: str = "none", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """What comes out in ``dtype``, and what should."""
    tokens, features = x.values.shape[0], weight.values.shape[0]
    activation = next((a for a in Activation if a.value == epilogue.split("+")[-1]), Activation.NONE)
    residual = randn(tokens, features, seed=4, dtype=dtype) if "residual" in epilogue else None
    out = poisoned_act(tokens, features // 2 if activation.gated else features, dtype)
    width = scratch_width(weight, ActFormat.FLOAT, activation)
    scratch = poisoned(tokens, width, dtype=dtype) if width else None
    linear(x, weight, out, residual=residual, activation=activation, scratch=scratch)
    return out.values, linear64(x, weight, residual, activation=activation)


def with_shape(monkeypatch: pytest.MonkeyPatch, **shape: int) -> None:
    """From here on products have this launch shape."""
    whole: dict[str, Any] = {"GROUP_M": 2, "split_below": 0, "num_warps": 4, "num_stages": 3, **shape}
    monkeypatch.setattr("app.kernels.gemm.triton.launch_shape", lambda *_op, **_dims: dict(whole))


# Every epilogue with two shapes, and every shape with several epilogues.
@pytest.mark.parametrize(
    ("epilogue", "shape"),
    [(epilogue, SHAPES[(i + j) % len(SHAPES)]) for i, epilogue in enumerate(EPILOGUES) for j in (0, 3)],
)
def test_int8_rounds_once(epilogue: str, shape: tuple[int, int, int]) -> None:
    tokens, k, n = shape
    out, expected = run(int8_x(tokens, k), w8a8(n, k, bias="bias" in epilogue), epilogue)
    assert relative_error(out, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("split", [False, True])
def test_int8_sums_are_exact(split: bool) -> None:
    k = 1040
    values = torch.full((20, k), 127, dtype=torch.int8)
    values[1, 0] = 126
    weight = LinearWeight(values, torch.ones(20), None, ActFormat.INT8_TOKEN, workspace() if split else None)
    out, _ = run(Act(values[:1], torch.ones(1, 1)), weight)
    assert out[0, :3].tolist() == [127 * 127 * k, 127 * 127 * k - 127, 127 * 127 * k]


@pytest.mark.parametrize("epilogue", ["bias", "bias+silu_mul"])
def test_a_rows_bits_do_not_depend_on_how_many_rows_there_are(epilogue: str) -> None:
    """Numbers of rows on both sides of every launch shape's border."""
    x, weight = int8_x(257, 300), w8a8(66, 300, bias=True, split=True)
    whole, _ = run(x, weight, epilogue, torch.bfloat16)
    assert x.scale is not None
    start = 120
    for tokens in (1, 2, 16, 17, 33, 65, 130):
        part = Act(x.values[start : start + tokens], x.scale[start : start + tokens])
        out, _ = run(part, weight, epilogue, torch.bfloat16)
        assert out.equal(whole[start : start + tokens]), tokens


@pytest.mark.parametrize("epilogue", ["bias", "bias+silu_mul"])
def test_a_rows_bits_do_not_depend_on_the_launch_shape(epilogue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = int8_x(33, 576), w8a8(98, 576, bias=True, split=True)
    outs = []
    for block_m, block_n, block_k, limit in [(16, 32, 64, 0), (32, 16, 128, 0), (64, 64, 64, 1000), (16, 128, 32, 100)]:
        with_shape(monkeypatch, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, split_below=limit)
        outs.append(run(x, weight, epilogue)[0])
    assert all(out.equal(outs[0]) for out in outs)


@pytest.mark.parametrize(
    ("epilogue", "n", "int8_input", "k"),
    [
        ("bias", 35, ActFormat.INT8_TOKEN, 1000),
        ("bias", 35, ActFormat.FLOAT, 576),
        ("bias+silu_mul", 70, ActFormat.INT8_TOKEN, 576),
        ("bias+silu_mul", 70, ActFormat.FLOAT, 1000),
    ],
)
def test_any_split_of_k_sums_it_all(
    epilogue: str, n: int, int8_input: ActFormat, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = int8_weight(n, k, int8_input, bias=True, split=True)
    assert weight.workspace is not None
    x = Act(randn(5, k, seed=1)) if int8_input is ActFormat.FLOAT else int8_x(5, k)
    for limit in (0, 4, 16):
        with_shape(monkeypatch, BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, split_below=limit)
        out, expected = run(x, weight, epilogue)
        assert relative_error(out, expected) <= TOLERANCE[torch.float32]
        assert run(x, weight, epilogue)[0].equal(out)
        # Ready for the next launch.
        assert not weight.workspace.arrivals.any()


def test_a_split_keeps_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    with_shape(monkeypatch, BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, split_below=10_000)
    x, weight = int8_x(20, 1000), w8a8(70, 1000)
    for sums, tiles in ((16 * 32 * 6 * 2, 6), (16 * 32 * 6 * 2 - 1, 6), (1 << 20, 5)):
        room = SplitKWorkspace(poisoned(sums, dtype=torch.int32), torch.zeros(tiles, dtype=torch.int32))
        small = LinearWeight(weight.values, weight.scale, None, ActFormat.INT8_TOKEN, room)
        out, expected = run(x, small)
        assert relative_error(out, expected) <= TOLERANCE[torch.float32]
        fits = sums == 16 * 32 * 6 * 2
        assert room.partials.eq(99).all() != fits


@latin([VECTOR, SHAPES[1], (17, 300, 66)])
def test_int8_weights_take_floating_rows(epilogue: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, k, n = shape
    weight = int8_weight(n, k, ActFormat.FLOAT, bias="bias" in epilogue, split=True)
    out, expected = run(Act(randn(tokens, k, seed=1, dtype=dtype)), weight, epilogue, dtype)
    assert relative_error(out, expected) <= TOLERANCE[dtype]


@latin([VECTOR, *SHAPES[1:3]])
def test_floating(epilogue: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, k, n = shape
    bias = randn(n, seed=3, dtype=dtype) if "bias" in epilogue else None
    weight = LinearWeight(small(n, k, seed=2, dtype=dtype), bias=bias)
    out, expected = run(Act(randn(tokens, k, seed=1, dtype=dtype)), weight, epilogue, dtype)
    roundings = (
        1.5 if "_mul" in epilogue else 1
    )  # of gate and up projection too, between the library's product and ours
    assert relative_error(out, expected) <= roundings * TOLERANCE[dtype]


def test_a_bias_of_another_dtype_is_added_in_fp32() -> None:
    x, weight = randn(3, 64, dtype=torch.bfloat16), randn(40, 64, seed=2, dtype=torch.bfloat16)
    out, expected = run(Act(x), LinearWeight(weight, bias=randn(40, seed=3)), dtype=torch.bfloat16)
    assert relative_error(out, expected) <= TOLERANCE[torch.bfloat16]


def test_a_residual_may_be_the_output_itself() -> None:
    x, weight, stream = int8_x(3, 63), w8a8(40, 63), randn(3, 40, seed=2)
    expected = linear64(x, weight, stream.clone())
    linear(x, weight, Act(stream), residual=stream)
    assert relative_error(stream, expected) <= TOLERANCE[torch.float32]


# Behind a single row's product all activations go the same way, gated or not.
@pytest.mark.parametrize(
    ("activation", "tokens"),
    [
        *((activation, 5) for activation in Activation),
        *((activation, 1) for activation in (Activation.NONE, Activation.GELU_TANH_MUL, Activation.RELU2)),
    ],
)
@pytest.mark.parametrize("kind", ["w8a8", "w8a16", "floating"])
def test_int8_output_has_a_scale_a_token(kind: str, activation: Activation, tokens: int) -> None:
    x = Act(randn(tokens, 64, seed=1))
    weight = LinearWeight(small(20, 64, seed=2))
    if kind != "floating":
        weight = int8_weight(20, 64, ActFormat.FLOAT if kind == "w8a16" else ActFormat.INT8_TOKEN)
    if kind == "w8a8":
        x = int8_x(tokens, 64)
    expected = linear64(x, weight, activation=activation)
    out = Act(poisoned(*expected.shape, dtype=torch.int8), poisoned(tokens, 1))
    scratch = poisoned(tokens, scratch_width(weight, ActFormat.INT8_TOKEN, activation))
    linear(x, weight, out, activation=activation, scratch=scratch)
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out)).all()


def test_int8_stays_close_to_the_floating_layer() -> None:
    x, weight = randn(16, 576, seed=1), small(96, 576, seed=2)
    out, _ = run(int8_x(16, 576), w8a8(96, 576), dtype=torch.bfloat16)
    assert relative_error(out, x.double() @ weight.double().t()) <= INT8_TOLERANCE


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("int8", [False, True])
def test_a_nan_stays_in_its_row(int8: bool, tokens: int) -> None:
    x = randn(tokens, 64)
    x[-1, 3] = float("nan")
    weight = int8_weight(8, 64, ActFormat.FLOAT) if int8 else LinearWeight(randn(8, 64, seed=1))
    assert run(Act(x), weight)[0].isnan().any(dim=-1).tolist() == [row == tokens - 1 for row in range(tokens)]


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("activation", [a for a in Activation if a is not Activation.NONE])
def test_activations_are_those_of_the_function_and_hand_on_a_nan(activation: Activation, tokens: int) -> None:
    """Of a weight of zeros the outputs are the bias; further out NumPy warns of an exponential that overflows."""
    count = 400 if tokens > 1 else 40  # of one row, whose programs have four each
    points = torch.linspace(-9, 9, count)
    points[1] = torch.nan
    weight = LinearWeight(torch.zeros(count, 16), bias=points)
    width = scratch_width(weight, ActFormat.FLOAT, activation)
    out = poisoned_act(tokens, count // 2 if activation.gated else count)
    scratch = poisoned(tokens, width) if width else None
    linear(Act(torch.ones(tokens, 16)), weight, out, activation=activation, scratch=scratch)
    expected = activated64(points.expand(tokens, -1), activation)
    assert out.values.isnan().equal(expected.isnan())
    error = (out.values.double() - expected).abs().nan_to_num(0)
    assert (error <= 4e-7 * expected.abs().nan_to_num(0) + 4e-7).all()


def test_no_rows_are_no_launch() -> None:
    assert run(int8_x(0, 64), w8a8(8, 64))[0].shape == (0, 8)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="by tokens"):
        linear(Act(randn(2, 128).to(torch.int8), randn(2, 2)), w8a8(8, 128), poisoned_act(2, 8))
    with pytest.raises(ValueError, match="by tokens"):
        linear(int8_x(2, 64), w8a8(128, 64), poisoned_act(2, 128, torch.int8))
    silu = Activation.SILU_MUL
    with pytest.raises(ValueError, match="needs a scratch 8 wide"):
        linear(Act(randn(2, 64)), LinearWeight(randn(8, 64)), poisoned_act(2, 4), activation=silu)
    with pytest.raises(ValueError, match=r"scratch has shape \[2, 4\], expected \[2, 8\]"):
        linear(
            Act(randn(2, 64)), LinearWeight(randn(8, 64)), poisoned_act(2, 4), activation=silu, scratch=poisoned(2, 4)
        )
