from __future__ import annotations

import pytest
import torch

from app.kernels import dispatch
from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.linear.pack import unpack
from app.kernels.native.program import Program
from app.kernels.types import Act
from tests.kernels.test_linear_native import DTYPES, _isas, isa, make_weight
from tests.kernels.util import dequantize, plain_weight, poisoned, poisoned_act, quantized, randn, relative_error

__all__ = ["isa"]

pytestmark = pytest.mark.skipif(not _isas(), reason="no native kernels here")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("indices", [[2], [0, 0, 4, 1], []])
def test_logits_are_fp32(isa: str, dtype: torch.dtype, hidden_dtype: torch.dtype, indices: list[int]) -> None:
    weight, hidden = make_weight(1537, 64, dtype, bias=False), randn(5, 64, dtype=hidden_dtype)
    out, scratch = poisoned(len(indices), 1537), poisoned_act(len(indices), 64, dtype)
    gather_lm_head(hidden, torch.tensor(indices, dtype=torch.int64), weight, out, scratch=scratch)
    assert not out.isnan().any()
    rows = hidden[indices]
    act = quantized(rows) if dtype is torch.int8 else Act(rows.to(dtype))
    plain = unpack(weight)
    if indices:
        expected = dequantize(act) @ plain_weight(plain).t()
        assert relative_error(out, expected) < 1e-6


def test_is_recorded_for_any_number_of_rows(isa: str) -> None:
    weight, hidden = make_weight(100, 64, torch.int8, bias=False), randn(5, 64)
    indices, out, scratch = torch.tensor([4, 1, 0]), poisoned(3, 100), poisoned_act(3, 64, torch.int8)
    with dispatch.recording() as calls:
        gather_lm_head(hidden, indices, weight, out, scratch=scratch)
    assert [call.name for call in calls] == ["quantize", "linear"]
    assert out.isnan().all()
    program = Program(dispatch.pool(), calls, isa)
    program.run(logits=2, tokens=5)
    whole = poisoned(3, 100)
    gather_lm_head(hidden, indices, weight, whole, scratch=poisoned_act(3, 64, torch.int8))
    assert torch.equal(out[:2], whole[:2])
    assert out[2].isnan().all()


def test_refuses_a_packed_weight_without_scratch() -> None:
    weight = make_weight(100, 64, torch.int8)
    with pytest.raises(ValueError, match="needs a scratch"):
        gather_lm_head(randn(3, 64), torch.tensor([0]), weight, poisoned(1, 100))
