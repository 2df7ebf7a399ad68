"""``sample`` in Triton, against its definition in plain numbers and what a row's token may hang on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.kernels.sample import record_tokens, sample
from app.kernels.sample.workspace import new_sample_workspace
from tests.kernels import sampling_oracle as oracle
from tests.kernels.sampling_oracle import Row
from tests.kernels.test_sample import make_params, sampled_rows
from tests.kernels.util import poisoned, randn

pytestmark = pytest.mark.usefixtures("interpreted")

CPU = torch.device("cpu")


def run(logits: Tensor, rows: Sequence[Row]) -> tuple[list[int], list[bool]]:
    workspace = new_sample_workspace(len(rows), logits.shape[1], CPU)
    out, failed = poisoned(len(rows), dtype=torch.int64), torch.ones(len(rows), dtype=torch.bool)
    before = logits.clone()
    sample(logits, replace(make_params(rows, logits.shape[1]), workspace=workspace), out, failed)
    assert torch.equal(logits.nan_to_num(7), before.nan_to_num(7))
    return out.tolist(), failed.tolist()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(sampled_rows, min_size=1, max_size=3), seed=st.integers(0, 2**31))
def test_every_row_gets_the_token_of_the_definition(rows: list[Row], seed: int) -> None:
    logits = randn(len(rows), 67, seed=seed) * 3
    tokens, failed = run(logits, rows)
    assert not any(failed)
    assert tokens == [oracle.token(x, row) for x, row in zip(logits.tolist(), rows, strict=True)]


@pytest.mark.parametrize(
    "row",
    [
        Row(temperature=0.0),
        Row(seed=5, position=9),
        Row(seed=5, position=9, temperature=0.7, top_k=50, top_p=0.9),
        Row(seed=2**63 + 7, sample_index=3, min_p=0.1, repetition=1.3, prompt=[4, 8999], output=[8999, 8999]),
    ],
)
def test_vocabularies_of_several_pieces(row: Row) -> None:
    logits = randn(1, 9001, seed=3) * 3
    assert run(logits, [row]) == ([oracle.token(logits[0].tolist(), row)], [False])


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("cut", [Row(top_k=900), Row(top_p=0.5), Row(top_p=0.999), Row(top_k=300, top_p=0.9)])
def test_thresholds_of_flat_rows_and_of_steep_ones(spread: float, cut: Row) -> None:
    """Those among a piece's largest logits, and those that have to be looked for among all."""
    logits = randn(1, 4100, seed=7) * spread
    for seed in range(2):
        row = replace(cut, seed=seed)
        assert run(logits, [row]) == ([oracle.token(logits[0].tolist(), row)], [False])


def test_the_lowest_id_among_equals_and_equals_of_the_last_one_kept() -> None:
    logits = torch.zeros(1, 8200)
    logits[0, [100, 5000]] = 2.0
    assert run(logits, [Row(temperature=0.0)]) == ([100], [False])
    drawn = {run(logits, [Row(seed=seed, top_k=1)])[0][0] for seed in range(12)}
    assert drawn == {100, 5000}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_cannot_be_sampled_fails_alone(bad: float) -> None:
    logits = randn(3, 67)
    logits[1, 40] = bad
    rows = [Row(seed=seed) for seed in range(3)]
    tokens, failed = run(logits, rows)
    assert failed == [False, True, False]
    assert tokens[1] == 0
    assert [tokens[0], tokens[2]] == [oracle.token(logits[i].tolist(), rows[i]) for i in (0, 2)]
    assert run(torch.full((1, 67), float("-inf")), [Row()]) == ([0], [True])


def test_a_row_does_not_see_its_neighbours() -> None:
    logits = randn(4, 1000) * 2
    rows = [Row(seed=seed, temperature=0.5 + seed, top_p=0.8, top_k=40 * seed) for seed in range(4)]
    whole, _ = run(logits, rows)
    assert whole == [run(logits[i : i + 1], [row])[0][0] for i, row in enumerate(rows)]


def test_it_asks_for_its_workspace() -> None:
    out, failed = poisoned(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
    with pytest.raises(ValueError, match="workspace"):
        sample(randn(1, 67), make_params([Row()], 67), out, failed)


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_tokens_are_recorded_for_their_slots_alone(rows: int) -> None:
    slots = torch.randperm(100, generator=torch.Generator().manual_seed(rows))[:rows]
    tokens = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(rows))
    last, counts = torch.full((100,), -1), torch.zeros(100, 50, dtype=torch.int32)
    record_tokens(tokens, slots, last, counts)
    record_tokens(tokens, slots, last, counts)
    expected_last, expected_counts = torch.full((100,), -1), torch.zeros(100, 50, dtype=torch.int32)
    for token, slot in zip(tokens.tolist(), slots.tolist(), strict=True):
        expected_last[slot] = token
        expected_counts[slot, token] = 2
    assert torch.equal(last, expected_last)
    assert torch.equal(counts, expected_counts)
    record_tokens(tokens, slots, last)
    assert torch.equal(counts, expected_counts)
