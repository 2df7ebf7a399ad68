"""``norm_add_norm`` in Triton against a float64 formula."""

from __future__ import annotations

import pytest
import torch

from app.kernels.norm_add_norm import norm_add_norm
from app.kernels.types import Act
from tests.kernels.test_norm_add_norm import check, norm64, operands
from tests.kernels.util import INT8_TOLERANCE, dequantize, poisoned, poisoned_act, relative_error

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "width"), [(0, 5), (1, 1), (3, 63), (5, 640), (2, 1000)])
def test_norms_adds_and_norms(dtype: torch.dtype, tokens: int, width: int) -> None:
    check(tokens, width, dtype, dtype)


def test_weights_of_fp32_norm_rows_of_bf16() -> None:
    check(3, 63, torch.bfloat16, torch.float32)


def test_a_factor_on_the_sum() -> None:
    check(3, 63, torch.float32, torch.float32, factor=0.375)


def test_int8_has_a_scale_a_token() -> None:
    x, x_weight, stream, weight = operands(4, 200, torch.float32)
    x[2], stream[2] = 0, 0
    out = Act(poisoned(4, 200, dtype=torch.int8), poisoned(4, 1))
    norm_add_norm(x, x_weight, stream, weight, 1e-6, out)
    expected = norm64(stream, weight)
    assert relative_error(dequantize(out), expected) <= INT8_TOLERANCE
    assert out.scale is not None
    assert torch.allclose(out.scale[:, 0].double(), expected.abs().amax(-1) / 127, rtol=1e-6)
    assert not out.values[2].any()


def test_rows_do_not_see_each_other() -> None:
    x, x_weight, stream, weight = operands(5, 96, torch.float32)
    before, whole, alone = stream.clone(), poisoned_act(5, 96), poisoned_act(1, 96)
    norm_add_norm(x, x_weight, stream, weight, 1e-6, whole)
    norm_add_norm(x[3:4], x_weight, before[3:4], weight, 1e-6, alone)
    assert torch.equal(whole.values[3:4], alone.values)


def test_scales_of_groups_are_refused() -> None:
    x, x_weight, stream, weight = operands(2, 128, torch.float32)
    with pytest.raises(ValueError, match="by tokens"):
        norm_add_norm(x, x_weight, stream, weight, 1e-6, poisoned_act(2, 128, torch.int8))
