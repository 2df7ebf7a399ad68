from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.kernels.sample import LogprobsOut, logprobs
from tests.kernels.util import poisoned, randn


def run(logits: Tensor, rows: list[int], tokens: list[int], k: int) -> LogprobsOut:
    count = len(rows)
    out = LogprobsOut(
        logprob=poisoned(count),
        rank=poisoned(count, dtype=torch.int64),
        top_ids=poisoned(count, k, dtype=torch.int64),
        top_logprobs=poisoned(count, k),
    )
    logprobs(logits, torch.tensor(rows, dtype=torch.int64), torch.tensor(tokens, dtype=torch.int64), out)
    return out


def check_against_a_plain_sort(logits: Tensor, rows: list[int], tokens: list[int], k: int, *, tolerance: float) -> None:
    out = run(logits, rows, tokens, k)
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        x = logits[row].tolist()
        exact = logits[row].double().log_softmax(-1)
        order = sorted(range(len(x)), key=lambda v: (-x[v], v))[:k]
        assert out.top_ids[i].tolist() == order
        assert out.rank[i] == 1 + sum(value > x[token] for value in x)
        assert torch.allclose(out.logprob[i].double(), exact[token], rtol=1e-6, atol=tolerance)
        assert torch.allclose(out.top_logprobs[i].double(), exact[order], rtol=1e-6, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    vocab_size=st.sampled_from([5, 63, 1000]),
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    k=st.integers(0, 5),
    levels=st.sampled_from([2, 4, 100]),
    seed=st.integers(0, 1000),
)
def test_against_a_plain_sort(vocab_size: int, tokens: list[int], k: int, levels: int, seed: int) -> None:
    """Few distinct levels make ties, also at the end of the top list."""
    logits = (randn(3, vocab_size, seed=seed) * levels / 4).round()
    check_against_a_plain_sort(logits, [i % 3 for i in range(len(tokens))], tokens, k, tolerance=1e-5)


@pytest.mark.parametrize("vocab_size", [63, 49152])
def test_a_token_in_the_top_list_has_the_identical_float(vocab_size: int) -> None:
    logits = randn(4, vocab_size) * 5
    rows = [row for row in range(4) for _ in range(5)]
    best = run(logits, [0, 1, 2, 3], [0] * 4, 5)
    tokens = best.top_ids.flatten().tolist()
    own = run(logits, rows, tokens, 0)
    # Other rows beside it, another number of alternatives: still the same bits.
    assert own.logprob.tolist() == best.top_logprobs.flatten().tolist()
    assert own.rank.tolist() == [1, 2, 3, 4, 5] * 4


def test_the_greedy_token_equals_the_maximum_of_its_list() -> None:
    """lm-eval calls a continuation greedy when its logprob equals max(top_logprobs) exactly."""
    logits = randn(50, 1000) * 4
    greedy = logits.argmax(-1).tolist()
    out = run(logits, list(range(50)), greedy, 1)
    assert out.logprob.tolist() == out.top_logprobs[:, 0].tolist()
    assert out.top_ids[:, 0].tolist() == greedy


def test_negative_values_zeros_of_both_signs_and_infinities_are_ordered() -> None:
    logits = torch.tensor([[-0.0, -5.0, 0.0, -1e-30, 3.0, -float("inf"), 1e-30]])
    assert run(logits, [0], [0], 7).top_ids.tolist() == [[4, 6, 0, 2, 3, 1, 5]]


def test_rank_counts_strictly_greater_ones() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert run(logits, [0] * 4, [0, 1, 2, 3], 0).rank.tolist() == [3, 1, 1, 4]


def test_a_nan_row_reports_nan_alone() -> None:
    logits = randn(3, 40)
    logits[1, 4] = float("nan")
    assert run(logits, [0, 1, 2], [0, 0, 0], 0).logprob.isnan().tolist() == [False, True, False]


def test_refuses_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="logprobs: 6 alternatives of a vocabulary of 5"):
        run(randn(1, 5), [0], [0], 6)
    with pytest.raises(ValueError, match=r"logprobs: token_ids has shape \[2\], expected \[1\]"):
        run(randn(1, 5), [0], [0, 1], 2)
