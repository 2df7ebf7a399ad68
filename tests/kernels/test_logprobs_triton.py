"""``logprobs`` in Triton: what its other forms give, over several pieces of a vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError, Mode
from tests.kernels.test_logprobs import check_against_a_plain_sort, run
from tests.kernels.util import randn

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize(("vocab_size", "k"), [(5, 5), (63, 20), (2048, 3), (2049, 32), (4100, 20), (4100, 0)])
@pytest.mark.parametrize("levels", [4, 100])
def test_against_a_plain_sort(vocab_size: int, k: int, levels: int) -> None:
    """Few distinct levels make ties, also at the end of the top list."""
    logits = (randn(3, vocab_size, seed=k) * levels / 4).round()
    logits[1, 0] = -math.inf
    tokens = [4, 0, 2, 3, vocab_size - 1]
    check_against_a_plain_sort(logits, [0, 1, 2, 1, 1], tokens, k, tolerance=1e-6)


def test_more_tokens_than_one_launch_takes_each_by_itself() -> None:
    logits = randn(3, 70) * 5
    rows, tokens = [i % 3 for i in range(66)], [i % 66 for i in range(66)]
    out = run(logits, rows, tokens, 2)
    for i in (0, 63, 64, 65):
        alone = run(logits, rows[i : i + 1], tokens[i : i + 1], 2)
        assert (out.logprob[i], out.rank[i]) == (alone.logprob[0], alone.rank[0])
        assert out.top_ids[i].equal(alone.top_ids[0])
        assert out.top_logprobs[i].equal(alone.top_logprobs[0])


def test_a_token_in_the_top_list_has_the_identical_float() -> None:
    logits = randn(4, 5000) * 5
    best = run(logits, [0, 1, 2, 3], [0] * 4, 5)
    tokens = best.top_ids.flatten().tolist()
    own = run(logits, [row for row in range(4) for _ in range(5)], tokens, 0)
    assert own.logprob.tolist() == best.top_logprobs.flatten().tolist()
    assert own.rank.tolist() == [1, 2, 3, 4, 5] * 4


def test_negative_values_zeros_of_both_signs_and_infinities_are_ordered() -> None:
    logits = torch.tensor([[-0.0, -5.0, 0.0, -1e-30, 3.0, -math.inf, 1e-30]])
    assert run(logits, [0], [0], 7).top_ids.tolist() == [[4, 6, 0, 2, 3, 1, 5]]


def test_rows_that_are_not_finite_report_nan_alone() -> None:
    logits = randn(4, 3000)
    logits[1, 4] = math.nan
    logits[2, 2999] = math.inf
    logits[3] = -math.inf
    assert run(logits, [0, 1, 2, 3], [0] * 4, 2).logprob.isnan().tolist() == [False, True, True, True]


def test_more_alternatives_than_it_lists_are_a_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = randn(1, 60)
    assert run(logits, [0], [0], 33).top_ids[0].tolist() == logits[0].argsort(descending=True)[:33].tolist()
    monkeypatch.setattr(dispatch._state, "mode", Mode.STRICT)
    monkeypatch.setattr("app.kernels.sample.runs_triton", lambda _: True)
    with pytest.raises(FallbackError, match="33 alternatives are more than 32"):
        run(logits, [0], [0], 33)
