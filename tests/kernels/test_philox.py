from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.kernels.sample.philox import philox4x32
from tests.kernels import sampling_oracle as oracle

# Known-answer vectors that Random123 publishes for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def generate(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3, k0, k1 = (torch.tensor([word]) for word in counter + key)
    return [int(word) for word in philox4x32((c0, c1, c2, c3), (k0, k1))]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, result: str) -> None:
    assert generate(words(counter), words(key)) == words(result)
    assert oracle.philox(words(counter), words(key)) == words(result)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
def test_agrees_with_unbounded_integers(six: list[int]) -> None:
    assert generate(six[:4], six[4:]) == oracle.philox(six[:4], six[4:])


def test_broadcasts_and_leaves_its_arguments_alone() -> None:
    lanes, rows = torch.arange(5)[None], torch.arange(3)[:, None]
    zero = torch.zeros(1, 1, dtype=torch.int64)
    result = philox4x32((lanes, rows, zero, zero), (rows, zero))
    assert [int(word[2, 4]) for word in result] == oracle.philox([4, 2, 0, 0], [2, 0])
    assert lanes.tolist() == [[0, 1, 2, 3, 4]]
    assert zero.item() == 0
