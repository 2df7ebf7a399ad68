"""``pool`` in every form against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels.pool import Mode, pool
from tests.kernels.delta import IMPLEMENTATIONS, running
from tests.kernels.test_packed_attention import packed
from tests.kernels.util import poisoned, randn, relative_error

LENGTHS = [1, 5, 130, 2, 1, 17]
MODES = [
    Mode.MEAN,
    Mode.FIRST,
    Mode.LAST | Mode.NORMALIZE,
    Mode.LAST,
    Mode.FIRST | Mode.NORMALIZE,
    Mode.MEAN | Mode.NORMALIZE,
]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def run(hidden: Tensor, lengths: list[int], modes: list[Mode]) -> Tensor:
    out = poisoned(len(lengths), hidden.shape[1])
    pool(hidden, packed(lengths), torch.tensor(modes, dtype=torch.int32), out)
    return out


def pooled64(states: Tensor, mode: Mode) -> Tensor:
    states = states.double()
    vector = states[0] if Mode.FIRST in mode else states[-1] if Mode.LAST in mode else states.mean(0)
    return vector / vector.norm() if Mode.NORMALIZE in mode else vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 21, 64, 1000])
@pytest.mark.parametrize("turn", range(3))
def test_against_fp64(implementation: str, dtype: torch.dtype, width: int, turn: int) -> None:
    hidden = randn(sum(LENGTHS), width, dtype=dtype)
    modes = MODES[turn:] + MODES[:turn]
    out = run(hidden, LENGTHS, modes)
    for row, states in enumerate(hidden.split(LENGTHS)):
        assert relative_error(out[row], pooled64(states, modes[row])) < 3e-6, row


def test_a_sequence_gives_the_same_bits_alone(implementation: str) -> None:
    hidden = randn(sum(LENGTHS), 100)
    together = run(hidden, LENGTHS, MODES)
    for row, states in enumerate(hidden.split(LENGTHS)):
        alone = run(states.clone(), [len(states)], [MODES[row]])
        assert torch.equal(alone[0], together[row])


def test_zeros_and_what_is_no_number(implementation: str) -> None:
    hidden = torch.zeros(3, 40)
    hidden[1] = float("nan")
    out = run(hidden, [1, 1, 1], [Mode.MEAN | Mode.NORMALIZE] * 3)
    assert out[0].eq(0).all()
    assert out[1].isnan().all()
    assert out[2].eq(0).all()


def test_refuses_arguments_that_do_not_fit() -> None:
    hidden, modes, out = randn(3, 8), torch.zeros(2, dtype=torch.int32), poisoned(2, 8)
    with pytest.raises(ValueError, match="pool: out has shape"):
        pool(hidden, packed([1, 2]), modes, poisoned(2, 7))
    with pytest.raises(ValueError, match="pool: modes is"):
        pool(hidden, packed([1, 2]), modes.long(), out)
    with pytest.raises(ValueError, match="pool: modes has shape"):
        pool(hidden, packed([1, 1, 1]), modes, poisoned(3, 8))
