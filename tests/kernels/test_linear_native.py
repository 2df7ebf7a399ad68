"""The native ``linear`` over packed weights, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.int8 import quantize, quantize_groups, quantize_tokens
from app.kernels.linear import Activation, linear
from app.kernels.linear.pack import new_packed_weight, pack_bias, pack_rows, packed_nbytes, unpack
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.kernels.types import Act, PackedWeight, num_groups
from tests.kernels.util import (
    TOLERANCE,
    activated64,
    dequantize,
    plain_weight,
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
DTYPES = [torch.int8, torch.bfloat16]
ACTIVATIONS = [activation for activation in Activation if activation is not Activation.NONE]
ROWS = [0, 1, 2, 3, 5, 6, 7, 16, 17, 63, 64, 65, 200]
SHAPES = [(576, 576), (63, 1000), (97, 36), (2, 4), (130, 4100)]


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    dispatch.configure(dispatch.Mode.AUTO, 2, isa=request.param)
    yield request.param
    dispatch.configure(dispatch.Mode.AUTO, 1)


def make_weight(n: int, k: int, dtype: torch.dtype, *, gate_up: bool = False, bias: bool = True) -> PackedWeight:
    weight = new_packed_weight(n, k, dtype, bias=bias, gate_up=gate_up)
    pack_rows(weight, 0, randn(n, k, seed=2))
    if bias:
        pack_bias(weight, 0, randn(n, seed=3))
    return weight


def make_x(tokens: int, k: int, dtype: torch.dtype) -> Act:
    x = randn(tokens, k, seed=1)
    return quantized(x) if dtype is torch.int8 else Act(x.to(dtype))


def expected64(x: Act, weight: PackedWeight, activation: Activation = Activation.NONE) -> Tensor:
    plain = unpack(weight)
    y = dequantize(x) @ plain_weight(plain).t()
    if plain.bias is not None:
        y = y + plain.bias.double()
    return activated64(y, activation)


def run(
    x: Act,
    weight: PackedWeight,
    dtype: torch.dtype = torch.float32,
    residual: Tensor | None = None,
    activation: Activation = Activation.NONE,
) -> Act:
    width = weight.out_features // (2 if weight.gate_up else 1)
    out = poisoned_act(x.values.shape[0], width, dtype)
    scratch = poisoned(x.values.shape[0], width) if dtype is torch.int8 else None
    linear(x, weight, out, residual=residual, activation=activation, scratch=scratch)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_number_of_rows(isa: str, dtype: torch.dtype, n: int, k: int) -> None:
    weight = make_weight(n, k, dtype)
    for tokens in ROWS:
        x = make_x(tokens, k, dtype)
        residual = randn(tokens, n, seed=4)
        out = run(x, weight, residual=residual).values
        assert not out.isnan().any()
        # Sums along K = 4100 in one order of fp32.
        assert tokens == 0 or relative_error(out, expected64(x, weight) + residual.double()) < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 34, 96, 130, 1000])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa: str, dtype: torch.dtype, activation: Activation, n: int) -> None:
    n -= not activation.gated
    weight = make_weight(n, 100, dtype, gate_up=activation.gated)
    for tokens in (1, 7, 65):
        x = make_x(tokens, 100, dtype)
        out, expected = run(x, weight, activation=activation).values, expected64(x, weight, activation)
        # One output alone may be all but nothing.
        assert (out.double() - expected).norm() < 2e-6 * expected.norm().clamp(min=1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_those_of_the_function_everywhere(isa: str, activation: Activation) -> None:
    """Of a weight of zeros the outputs are the bias."""
    points = torch.cat((torch.linspace(-14, 14, 3001), torch.tensor([0.0, 1e-30, -1e-30, 1e-3, 1e18, -1e18])))
    points = points[: len(points) // 2 * 2]
    weight = new_packed_weight(len(points), 2, torch.bfloat16, bias=True, gate_up=activation.gated)
    pack_bias(weight, 0, points)
    x = Act(torch.ones(1, 2, dtype=torch.bfloat16))
    out, expected = run(x, weight, activation=activation).values[0].double(), activated64(points, activation)
    if activation.gated:
        points = points.chunk(2)[0] * points.chunk(2)[1]
    # What is small at the negative end may be coarser.
    assert ((out - expected).abs() <= 2.5e-7 * expected.abs() + 1.2e-7 * points.double().abs().clamp(max=1)).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_hands_on_a_nan(isa: str, activation: Activation) -> None:
    weight = new_packed_weight(8, 2, torch.bfloat16, bias=True, gate_up=activation.gated)
    pack_bias(weight, 0, torch.tensor([1.0, float("nan"), -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]))
    out = run(Act(torch.ones(1, 2, dtype=torch.bfloat16)), weight, activation=activation).values[0]
    assert out.isnan().tolist() == [i == 1 for i in range(len(out))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others_nor_on_threads(isa: str, dtype: torch.dtype) -> None:
    weight, x = make_weight(200, 4100, dtype), make_x(200, 4100, dtype)
    whole = run(x, weight).values
    for threads in (1, 3):
        dispatch.configure(dispatch.Mode.AUTO, threads, isa=isa)
        assert torch.equal(run(x, weight).values, whole)
    for start, stop in [(0, 1), (5, 6), (199, 200), (3, 5), (7, 12), (20, 84), (100, 193)]:
        part = Act(x.values[start:stop].clone(), None if x.scale is None else x.scale[start:stop].clone())
        assert torch.equal(run(part, weight).values, whole[start:stop])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounds_once_to_its_output(isa: str, dtype: torch.dtype) -> None:
    weight, x = make_weight(70, 64, dtype), make_x(9, 64, dtype)
    exact = run(x, weight).values
    assert torch.equal(run(x, weight, torch.bfloat16).values, exact.bfloat16())
    quantised, (values, scale) = run(x, weight, torch.int8), quantize_groups(exact)
    assert torch.equal(quantised.values, values)
    assert quantised.scale is not None
    assert torch.equal(quantised.scale, scale)


@pytest.mark.parametrize("stream_dtype", [torch.float32, torch.bfloat16])
def test_residual_may_be_the_output_itself(isa: str, stream_dtype: torch.dtype) -> None:
    weight, x = make_weight(70, 64, torch.int8), make_x(9, 64, torch.int8)
    stream = randn(9, 70, seed=5, dtype=stream_dtype)
    expected = expected64(x, weight) + stream.double()
    linear(x, weight, Act(stream), residual=stream)
    assert relative_error(stream, expected) < TOLERANCE[stream_dtype]


def test_int8_sums_are_exact_at_the_extremes(isa: str) -> None:
    k = 65536
    weight = new_packed_weight(16, k, torch.int8, bias=False, gate_up=False)
    signs = torch.ones(16, 1)
    signs[1::2] = -1
    pack_rows(weight, 0, signs.expand(16, k))
    for value in (127, -127):
        x = Act(torch.full((2, k), value, dtype=torch.int8), torch.ones(2, num_groups(k)))
        expected = torch.tensor(float(value * 127 * k)) * (signs.t() / 127)
        assert torch.equal(run(x, weight).values, expected.expand(2, 16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_stays_in_its_row(isa: str, dtype: torch.dtype) -> None:
    weight = make_weight(70, 64, dtype)
    x = randn(7, 64)
    x[3, 5] = float("nan")
    act = quantized(x) if dtype is torch.int8 else Act(x.to(dtype))
    assert run(act, weight).values.isnan().all(dim=-1).tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize("gate_up", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packs_in_any_cut_and_order(dtype: torch.dtype, gate_up: bool) -> None:
    rows, bias = randn(150, 36), randn(150, seed=1)
    weight = new_packed_weight(150, 36, dtype, bias=True, gate_up=gate_up)
    for start, stop in [(149, 150), (0, 3), (3, 100), (100, 149)]:
        pack_rows(weight, start, rows[start:stop])
        pack_bias(weight, start, bias[start:stop])
    plain = unpack(weight)
    assert plain.bias is not None
    assert torch.equal(plain.bias, bias)
    if dtype is torch.bfloat16:
        assert torch.equal(plain.values, rows.bfloat16())
        assert plain.scale is None
        return
    values, scale = quantize(rows)
    assert torch.equal(plain.values, values)
    assert plain.scale is not None
    assert torch.equal(plain.scale, scale)


def test_counts_its_bytes() -> None:
    for dtype, gate_up in [(torch.int8, True), (torch.bfloat16, False)]:
        weight = new_packed_weight(150, 36, dtype, bias=True, gate_up=gate_up)
        tensors = [t for t in (weight.data, weight.scale, weight.bias) if t is not None]
        assert packed_nbytes(150, 36, dtype, bias=True, gate_up=gate_up) == sum(t.nbytes for t in tensors)


def test_refuses_what_cannot_be_packed() -> None:
    for n, k, dtype, gate_up in [
        (8, 6, torch.int8, False),
        (8, 7, torch.bfloat16, False),
        (8, 65540, torch.int8, False),
        (7, 8, torch.int8, True),
        (0, 8, torch.int8, False),
        (8, 8, torch.float32, False),
    ]:
        with pytest.raises(ValueError):
            new_packed_weight(n, k, dtype, bias=False, gate_up=gate_up)
    weight = new_packed_weight(8, 8, torch.int8, bias=False, gate_up=False)
    with pytest.raises(ValueError, match="rows 4 to 9"):
        pack_rows(weight, 4, randn(5, 8))
    with pytest.raises(ValueError, match="cannot pack"):
        pack_rows(weight, 0, randn(5, 4))
    with pytest.raises(ValueError, match="cannot pack a bias"):
        pack_bias(weight, 0, randn(8))


def test_refuses_arguments_that_do_not_fit() -> None:
    weight, x = make_weight(8, 8, torch.int8), make_x(3, 8, torch.int8)
    with pytest.raises(ValueError, match="needs a scratch"):
        linear(x, weight, poisoned_act(3, 8, torch.int8))
    with pytest.raises(ValueError, match=r"linear: x is torch.float32"):
        linear(Act(randn(3, 8)), weight, poisoned_act(3, 8))
    with pytest.raises(ValueError, match="gate_up"):
        linear(x, weight, poisoned_act(3, 4), activation=Activation.SILU_MUL)
    wide, by_tokens = make_weight(132, 132, torch.int8), Act(*quantize_tokens(randn(3, 132)))
    with pytest.raises(ValueError, match="linear: native kernels quantise by groups"):
        linear(by_tokens, wide, poisoned_act(3, 132))
    with pytest.raises(ValueError, match="quantize: native kernels quantise by groups"):
        linear(make_x(3, 132, torch.int8), wide, by_tokens, scratch=poisoned(3, 132))
    with pytest.raises(ValueError, match=r"linear: out is torch.float16"):
        linear(x, weight, poisoned_act(3, 8, torch.float16))
