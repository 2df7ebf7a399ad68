from __future__ import annotations

import pytest
import torch

from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.int8 import quantize
from app.kernels.types import LinearWeight
from tests.kernels.util import INT8_TOLERANCE, poisoned, randn, relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [63, 1000, 1537])
@pytest.mark.parametrize("indices", [[2], [0, 0, 4, 1], []])
def test_logits_are_never_rounded_below_fp32(dtype: torch.dtype, vocab_size: int, indices: list[int]) -> None:
    hidden, weight = randn(5, 63, seed=1, dtype=dtype), randn(vocab_size, 63, seed=2, dtype=dtype)
    out = poisoned(len(indices), vocab_size)
    gather_lm_head(hidden, torch.tensor(indices, dtype=torch.int64), LinearWeight(weight), out)
    assert not out.isnan().any()
    if indices:
        assert relative_error(out, hidden[indices].double() @ weight.double().t()) < 1e-6


def test_adds_a_bias() -> None:
    hidden, weight, bias, out = randn(3, 16), randn(40, 16, seed=1), randn(40, seed=2), poisoned(1, 40)
    gather_lm_head(hidden, torch.tensor([1]), LinearWeight(weight, bias=bias), out)
    assert relative_error(out, hidden[1:2].double() @ weight.double().t() + bias) < 1e-6


def test_int8_weight_quantises_the_gathered_rows() -> None:
    hidden, weight, out = randn(4, 576), randn(100, 576, seed=1), poisoned(2, 100)
    gather_lm_head(hidden, torch.tensor([3, 1]), LinearWeight(*quantize(weight)), out)
    assert relative_error(out, hidden[[3, 1]].double() @ weight.double().t()) < INT8_TOLERANCE


def test_a_nan_stays_in_its_row() -> None:
    hidden, out = randn(3, 16), poisoned(3, 40)
    hidden[1, 2] = float("nan")
    gather_lm_head(hidden, torch.arange(3), LinearWeight(randn(40, 16, seed=1)), out)
    assert out.isnan().any(dim=-1).tolist() == [False, True, False]


def test_refuses_arguments_that_do_not_fit() -> None:
    hidden, weight = randn(3, 8), LinearWeight(randn(6, 8))
    with pytest.raises(ValueError, match=r"gather_lm_head: out is torch.bfloat16"):
        gather_lm_head(hidden, torch.tensor([0]), weight, poisoned(1, 6, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="gather_lm_head: out has shape"):
        gather_lm_head(hidden, torch.tensor([0, 1]), weight, poisoned(1, 6))
    with pytest.raises(ValueError, match=r"gather_lm_head: hidden is torch.bfloat16"):
        gather_lm_head(hidden.bfloat16(), torch.tensor([0]), weight, poisoned(1, 6))
    with pytest.raises(ValueError, match=r"gather_lm_head: indices is torch.int32"):
        gather_lm_head(hidden, torch.tensor([0], dtype=torch.int32), weight, poisoned(1, 6))
