from __future__ import annotations

import pytest
import torch

from app.kernels.int8 import quantize
from app.kernels.linear import Activation, linear
from app.kernels.types import ACT_GROUP, Act, LinearWeight
from tests.kernels.util import (
    INT8_TOLERANCE,
    TOLERANCE,
    dequantize,
    linear64,
    poisoned,
    poisoned_act,
    quantized,
    randn,
    relative_error,
    steps,
)

EPILOGUES = ["residual", *(activation.value for activation in Activation)]
SHAPES = [(1, 7, 6), (3, 576, 1536), (17, 63, 1000), (0, 5, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("tokens", "width", "features"), SHAPES)
def test_floating(dtype: torch.dtype, with_bias: bool, epilogue: str, tokens: int, width: int, features: int) -> None:
    x = Act(randn(tokens, width, seed=1, dtype=dtype))
    bias = randn(features, seed=3, dtype=dtype) if with_bias else None
    weight = LinearWeight(randn(features, width, seed=2, dtype=dtype), bias=bias)
    residual = randn(tokens, features, seed=4, dtype=dtype) if epilogue == "residual" else None
    activation = Activation.NONE if epilogue == "residual" else Activation(epilogue)
    out = poisoned_act(tokens, features // 2 if activation.gated else features, dtype)
    linear(x, weight, out, residual=residual, activation=activation)
    assert not out.values.isnan().any()
    if tokens:
        expected = linear64(x, weight, residual, activation=activation)
        assert relative_error(out.values, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_may_be_the_output_itself(dtype: torch.dtype) -> None:
    x, weight = Act(randn(3, 63, dtype=dtype)), LinearWeight(randn(40, 63, seed=1, dtype=dtype))
    stream = randn(3, 40, seed=2, dtype=dtype)
    expected = linear64(x, weight, stream.clone())
    linear(x, weight, Act(stream), residual=stream)
    assert relative_error(stream, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(("tokens", "width", "features"), SHAPES[:3])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_int8_sums_exactly_and_rounds_once(epilogue: str, tokens: int, width: int, features: int) -> None:
    x = quantized(randn(tokens, width, seed=1))
    weight = LinearWeight(*quantize(randn(features, width, seed=2)), bias=randn(features, seed=3))
    residual = randn(tokens, features, seed=4) if epilogue == "residual" else None
    activation = Activation.NONE if epilogue == "residual" else Activation(epilogue)
    out = poisoned_act(tokens, features // 2 if activation.gated else features)
    linear(x, weight, out, residual=residual, activation=activation)
    expected = linear64(x, weight, residual, activation=activation)
    assert relative_error(out.values, expected) < TOLERANCE[torch.float32]


def test_int8_sums_of_a_group_are_exact() -> None:
    values = torch.full((1, ACT_GROUP), 127, dtype=torch.int8)
    other = values.clone()
    other[0, 0] = 126
    out = poisoned_act(1, 2)
    weight = LinearWeight(torch.cat((values, other)), scale=torch.ones(2))
    linear(Act(values, torch.ones(1, 1)), weight, out)
    assert out.values.tolist() == [[127 * 127 * ACT_GROUP, 127 * 127 * ACT_GROUP - 127]]


def test_int8_layer_stays_close_to_the_floating_one() -> None:
    x, w = randn(16, 576, seed=1), randn(384, 576, seed=2)
    out = poisoned_act(16, 384)
    linear(quantized(x), LinearWeight(*quantize(w)), out)
    assert relative_error(out.values, x.double() @ w.double().t()) < INT8_TOLERANCE


@pytest.mark.parametrize("activation", list(Activation))
def test_int8_output_is_quantised_by_groups(activation: Activation) -> None:
    x, weight = Act(randn(5, 64)), LinearWeight(randn(48, 64, seed=1))
    expected = linear64(x, weight, activation=activation)
    out = poisoned_act(5, expected.shape[1], torch.int8)
    linear(x, weight, out, activation=activation)
    assert out.scale is not None
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out)).all()


def test_a_nan_stays_in_its_row() -> None:
    x, out = randn(4, 32), poisoned_act(4, 8)
    x[2, 3] = float("nan")
    linear(Act(x), LinearWeight(randn(8, 32, seed=1)), out)
    assert out.values.isnan().any(dim=-1).tolist() == [False, False, True, False]


def test_quantize_rounds_half_to_even_and_survives_zeros() -> None:
    values, scale = quantize(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0]]))
    assert values.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scale.tolist() == [1.0, 0.0]


def test_refuses_arguments_that_do_not_fit() -> None:
    x, weight = Act(randn(3, 8)), LinearWeight(randn(6, 8))
    with pytest.raises(ValueError, match=r"linear: x has shape \[3, 7\], expected \[3, 8\]"):
        linear(Act(randn(3, 7)), weight, poisoned_act(3, 6))
    with pytest.raises(ValueError, match=r"linear: x is torch.float32 but weight is torch.int8"):
        linear(x, LinearWeight(*quantize(randn(6, 8))), poisoned_act(3, 6))
    with pytest.raises(ValueError, match=r"linear: weight is torch.bfloat16"):
        linear(x, LinearWeight(randn(6, 8, dtype=torch.bfloat16)), poisoned_act(3, 6))
    with pytest.raises(ValueError, match=r"linear: weight.bias has shape"):
        linear(x, LinearWeight(randn(6, 8), bias=randn(5)), poisoned_act(3, 6))
    with pytest.raises(ValueError, match=r"linear: out has shape \[3, 6\], expected \[3, 3\]"):
        linear(x, weight, poisoned_act(3, 6), activation=Activation.SILU_MUL)
    for activation, width in ((Activation.SILU_MUL, 3), (Activation.GELU, 6)):
        with pytest.raises(ValueError, match=f"linear: {activation.name} takes no residual"):
            linear(x, weight, poisoned_act(3, width), activation=activation, residual=poisoned(3, 6))
    with pytest.raises(ValueError, match="linear: GELU_TANH_MUL needs an even number of outputs, not 5"):
        linear(x, LinearWeight(randn(5, 8)), poisoned_act(3, 2), activation=Activation.GELU_TANH_MUL)
    with pytest.raises(ValueError, match=r"linear: residual has shape"):
        linear(x, weight, poisoned_act(3, 6), residual=poisoned(2, 6))
