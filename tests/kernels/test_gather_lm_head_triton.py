"""``gather_lm_head`` in Triton against float64."""

from __future__ import annotations

import pytest
import torch

from app.kernels.gather_lm_head import gather_lm_head, needs_scratch
from app.kernels.int8 import quantize
from app.kernels.types import Act, ActFormat, LinearWeight
from tests.kernels.util import INT8_TOLERANCE, poisoned, poisoned_act, randn, relative_error

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [63, 1000])
@pytest.mark.parametrize("indices", [[2], [0, 0, 4, 1], []])
def test_logits_are_never_rounded_below_fp32(dtype: torch.dtype, vocab_size: int, indices: list[int]) -> None:
    hidden, weight = randn(5, 63, seed=1, dtype=dtype), randn(vocab_size, 63, seed=2, dtype=dtype)
    out = poisoned(len(indices), vocab_size)
    gather_lm_head(hidden, torch.tensor(indices, dtype=torch.int64), LinearWeight(weight), out)
    assert not out.isnan().any()
    if indices:
        assert relative_error(out, hidden[indices].double() @ weight.double().t()) <= 1e-6


def test_adds_a_bias() -> None:
    hidden, weight, bias, out = randn(3, 16), randn(40, 16, seed=1), randn(40, seed=2), poisoned(1, 40)
    gather_lm_head(hidden, torch.tensor([1]), LinearWeight(weight, bias=bias), out)
    assert relative_error(out, hidden[1:2].double() @ weight.double().t() + bias) <= 1e-6


# Rows keep their place in the tile: to a GPU it is all one, NumPy's sums differ with it and with the tile.
@pytest.mark.parametrize(("count", "of"), [(1, 64), (2, 64), (16, 64), (17, 64), (70, 130)])
def test_a_rows_bits_do_not_depend_on_the_others(count: int, of: int) -> None:
    hidden, weight = randn(of, 200, dtype=torch.bfloat16), LinearWeight(randn(130, 200, seed=1, dtype=torch.bfloat16))
    whole, part = poisoned(of, 130), poisoned(count, 130)
    gather_lm_head(hidden, torch.arange(of), weight, whole)
    hidden[count:] = 7
    gather_lm_head(hidden, torch.arange(count), weight, part)
    assert part.equal(whole[:count])


def test_an_int8_head_quantises_the_gathered_rows() -> None:
    hidden, weight, out = randn(4, 576), randn(100, 576, seed=1), poisoned(2, 100)
    head = LinearWeight(*quantize(weight), int8_input=ActFormat.INT8_TOKEN)
    assert needs_scratch(head)
    scratch = Act(poisoned(2, 576, dtype=torch.int8), poisoned(2, 1))
    gather_lm_head(hidden, torch.tensor([3, 1]), head, out, scratch=scratch)
    assert relative_error(out, hidden[[3, 1]].double() @ weight.double().t()) <= INT8_TOLERANCE


def test_an_int8_head_takes_floating_rows() -> None:
    hidden, out = randn(4, 576), poisoned(2, 100)
    values, scale = quantize(randn(100, 576, seed=1))
    head = LinearWeight(values, scale, int8_input=ActFormat.FLOAT)
    assert not needs_scratch(head)
    gather_lm_head(hidden, torch.tensor([3, 1]), head, out)
    assert relative_error(out, hidden[[3, 1]].double() @ (values.double() * scale[:, None]).t()) <= 1e-6


def test_a_nan_stays_in_its_row() -> None:
    hidden, out = randn(3, 16), poisoned(3, 40)
    hidden[1, 2] = float("nan")
    gather_lm_head(hidden, torch.arange(3), LinearWeight(randn(40, 16, seed=1)), out)
    assert out.isnan().any(dim=-1).tolist() == [False, True, False]


def test_refuses_a_scratch_that_does_not_fit() -> None:
    hidden, out = randn(3, 128), poisoned(1, 6)
    int8 = LinearWeight(*quantize(randn(6, 128)), int8_input=ActFormat.INT8_TOKEN)
    with pytest.raises(ValueError, match="needs a scratch"):
        gather_lm_head(hidden, torch.tensor([0]), int8, out)
    with pytest.raises(ValueError, match="by tokens"):
        gather_lm_head(hidden, torch.tensor([0]), int8, out, scratch=poisoned_act(1, 128, torch.int8))
    with pytest.raises(ValueError, match="no other takes one"):
        gather_lm_head(hidden, torch.tensor([0]), LinearWeight(randn(6, 128)), out, scratch=poisoned_act(1, 128))
