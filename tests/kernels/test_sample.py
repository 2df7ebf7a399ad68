from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.kernels.sample import MinTokens, Penalties, SampleParams, record_tokens, sample
from tests.kernels import sampling_oracle as oracle
from tests.kernels.sampling_oracle import Row
from tests.kernels.util import poisoned, randn


def make_params(rows: Sequence[Row], vocab_size: int) -> SampleParams:
    """Row r sits in slot ``len(rows) - 1 - r`` and reads row r of the logits; every optional part is there."""
    count = len(rows)
    shape = (count, vocab_size)
    prompt, counts = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int32)
    stops, bias = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    words = torch.full((count, -(-vocab_size // 32)), -1, dtype=torch.int32)
    for index, row in enumerate(rows):
        slot = count - 1 - index
        prompt[slot, row.prompt] = True
        for token in row.output:
            counts[slot, token] += 1
        stops[slot, row.banned] = True
        for token, value in row.bias.items():
            bias[slot, token] = value
        if row.allowed is not None:
            words[slot] = torch.tensor(pack(row.allowed, vocab_size), dtype=torch.int32)

    def floats(name: str) -> Tensor:
        return torch.tensor([getattr(row, name) for row in rows], dtype=torch.float32)

    return SampleParams(
        rows=torch.arange(count),
        slots=torch.arange(count - 1, -1, -1),
        temperature=floats("temperature"),
        seeds=torch.tensor([row.seed - (row.seed >> 63 << 64) for row in rows]),
        positions=torch.tensor([row.position for row in rows]),
        sample_indices=torch.tensor([row.sample_index for row in rows]),
        top_k=torch.tensor([row.top_k for row in rows]),
        top_p=floats("top_p"),
        min_p=floats("min_p"),
        penalties=Penalties(floats("repetition"), floats("presence"), floats("frequency"), prompt, counts),
        min_tokens=MinTokens(torch.tensor([bool(row.banned) for row in rows]), stops),
        logit_bias=bias,
        token_mask=words,
    )


def pack(allowed: set[int], vocab_size: int) -> list[int]:
    words = [0] * -(-vocab_size // 32)
    for token in allowed:
        words[token // 32] |= 1 << token % 32
    return [word - (word >> 31 << 32) for word in words]


def run(logits: Tensor, rows: Sequence[Row]) -> tuple[list[int], list[bool]]:
    params = make_params(rows, logits.shape[1])
    out, failed = poisoned(len(rows), dtype=torch.int64), torch.ones(len(rows), dtype=torch.bool)
    before = logits.clone()
    sample(logits, params, out, failed)
    assert torch.equal(logits.nan_to_num(7), before.nan_to_num(7))
    return out.tolist(), failed.tolist()


def draw(logits: Tensor, row: Row, count: int) -> Tensor:
    """[count] samples of one row of logits, at successive positions."""
    params = SampleParams(
        rows=torch.zeros(count, dtype=torch.int64),
        slots=torch.zeros(count, dtype=torch.int64),
        temperature=torch.full((count,), row.temperature),
        seeds=torch.full((count,), row.seed),
        positions=torch.arange(count),
        sample_indices=torch.full((count,), row.sample_index),
        top_k=torch.full((count,), row.top_k),
        top_p=torch.full((count,), row.top_p),
        min_p=torch.full((count,), row.min_p),
    )
    out, failed = poisoned(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool)
    sample(logits[None], params, out, failed)
    assert not failed.any()
    return out


token_sets = st.lists(st.integers(0, 66), max_size=8)
sampled_rows = st.builds(
    Row,
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**32 - 1),
    sample_index=st.integers(0, 127),
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 67, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.8, 0.3, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    presence=st.sampled_from([0.0, 0.9, -1.5]),
    frequency=st.sampled_from([0.0, 0.4, -0.3]),
    prompt=token_sets,
    output=token_sets,
    banned=token_sets,
    bias=st.dictionaries(st.integers(0, 66), st.sampled_from([-100.0, -1.25, 2.5, 100.0]), max_size=4),
    allowed=st.none() | st.sets(st.integers(0, 66), min_size=12),
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(sampled_rows, min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_every_row_gets_the_token_of_the_definition(rows: list[Row], seed: int) -> None:
    logits = randn(len(rows), 67, seed=seed) * 3
    tokens, failed = run(logits, rows)
    assert not any(failed)
    assert tokens == [oracle.token(x, row) for x, row in zip(logits.tolist(), rows, strict=True)]


@pytest.mark.parametrize("vocab_size", [63, 1000, 5003])
def test_neighbours_do_not_change_a_row(vocab_size: int) -> None:
    rows = [
        Row(seed=1),
        Row(seed=2, top_p=0.9),
        Row(seed=3, top_k=40, top_p=0.95),
        Row(seed=4, temperature=0.0),
        Row(seed=5, top_p=0.999, temperature=2.0),
        Row(seed=6, repetition=1.2, output=[1, 2, 2], prompt=[9]),
        Row(seed=7, min_p=0.1),
        Row(seed=8, top_k=1500),
        *[Row(seed=9 + i, top_p=0.5) for i in range(4)],
    ]
    logits = randn(len(rows), vocab_size) * 2
    together, _ = run(logits, rows)
    for index, row in enumerate(rows):
        assert run(logits[index : index + 1], [row])[0] == [together[index]]
    backwards, _ = run(logits.flip(0), rows[::-1])
    assert backwards == together[::-1]


def test_parts_that_no_row_uses_change_nothing() -> None:
    rows = [Row(seed=i, temperature=t) for i, t in enumerate((0.0, 0.5, 1.0))]
    logits = randn(3, 1000)
    full = make_params(rows, 1000)
    bare = SampleParams(full.rows, full.slots, full.temperature, full.seeds, full.positions, full.sample_indices)
    out, failed = poisoned(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    sample(logits, bare, out, failed)
    assert (out.tolist(), failed.tolist()) == run(logits, rows)


def test_rows_name_their_logits() -> None:
    logits = torch.zeros(4, 10)
    logits[[0, 1, 2, 3], [5, 6, 7, 8]] = 1
    params = make_params([Row(temperature=0.0)] * 3, 10)
    params = SampleParams(
        torch.tensor([3, 0, 3]), params.slots, params.temperature, params.seeds, params.positions, params.sample_indices
    )
    out, failed = poisoned(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    sample(logits, params, out, failed)
    assert out.tolist() == [8, 5, 8]


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = torch.zeros(2, 1000)
    logits[1, [17, 503, 999]] = 4.0
    assert run(logits, [Row(temperature=0.0)] * 2)[0] == [0, 17]


def test_a_tiny_temperature_is_greedy_and_a_huge_one_is_not_a_fault() -> None:
    logits = randn(2, 1000)
    tokens, failed = run(logits, [Row(temperature=1e-30), Row(temperature=1e30)])
    assert tokens[0] == int(logits[0].argmax())
    assert failed == [False, False]


# -- distributions --------------------------------------------------------------------------------------------------


def chi_square(tokens: Tensor, probs: Tensor) -> float:
    """Statistic in standard deviations above its mean."""
    expected = probs * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    freedom = len(probs) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    logits = randn(41, seed=3)
    tokens = draw(logits, Row(seed=11, temperature=temperature), 20000)
    probs = (logits.double() / temperature).softmax(-1)
    assert abs(chi_square(tokens, probs)) < 4
    # The test sees a difference as small as a fifth of a nat in the likeliest logit.
    skewed = logits.double().clone()
    skewed[skewed.argmax()] += 0.2 * temperature
    assert chi_square(tokens, (skewed / temperature).softmax(-1)) > 4


def test_frequencies_after_truncation_follow_the_renormalised_softmax() -> None:
    logits = randn(41, seed=3)
    row = Row(seed=5, top_k=12, top_p=0.9)
    keep = sorted(oracle.kept(logits.tolist(), row))
    tokens = draw(logits, row, 20000)
    assert set(tokens.tolist()) == set(keep)
    ranks = torch.searchsorted(torch.tensor(keep), tokens)
    assert abs(chi_square(ranks, logits.double()[keep].softmax(-1))) < 4


@pytest.mark.parametrize("keys", [(Row(seed=1), Row(seed=2)), (Row(sample_index=1), Row(sample_index=2))])
def test_streams_of_different_keys_are_independent(keys: tuple[Row, Row]) -> None:
    one, two = (draw(torch.zeros(8), row, 8000) for row in keys)
    assert abs(chi_square(one * 8 + two, torch.full((64,), 1 / 64, dtype=torch.float64))) < 4


def test_successive_positions_are_independent() -> None:
    tokens = draw(torch.zeros(8), Row(seed=3), 8001)
    pairs = tokens[:-1] * 8 + tokens[1:]
    assert abs(chi_square(pairs, torch.full((64,), 1 / 64, dtype=torch.float64))) < 4


def test_all_64_bits_of_the_seed_count() -> None:
    logits = torch.zeros(1, 50000)
    tokens = {run(logits, [Row(seed=seed)])[0][0] for seed in (0, 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1)}
    assert len(tokens) == 6


# -- truncation -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(top_p=st.floats(0.05, 0.99), spread=st.sampled_from([0.3, 1.0, 4.0]), seed=st.integers(0, 1000))
def test_top_p_keeps_the_least_set_with_enough_mass(top_p: float, spread: float, seed: int) -> None:
    logits = randn(50, seed=seed) * spread
    probs = logits.double().softmax(-1)
    drawn = draw(logits, Row(seed=seed, top_p=top_p), 400)
    nucleus = probs >= probs[drawn].min()  # at least the tokens seen
    smallest = probs[nucleus].min()
    assert probs[probs > smallest].sum() < top_p + 1e-6


def test_top_p_looks_beyond_its_first_values_when_the_mass_is_spread() -> None:
    """A flat vocabulary of 5,000: the nucleus has about 4,500 tokens, more than are looked at first."""
    logits = randn(5000) * 0.01
    drawn = draw(logits, Row(top_p=0.9), 1000)
    excluded = logits.argsort()[:450]
    assert not torch.isin(drawn, excluded).any()
    assert len(drawn.unique()) > 700


def test_top_k_keeps_k_and_their_ties() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0, 2.5])
    assert set(draw(logits, Row(top_k=2), 300).tolist()) == {1, 5}
    assert set(draw(logits, Row(top_k=3), 300).tolist()) == {1, 5, 2, 3}
    assert set(draw(logits, Row(top_k=1), 50).tolist()) == {1}


def test_top_p_renormalises_over_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the whole, 0.4 + 0.3 do not hold 0.75; of the first two, 0.4 / 0.7 = 0.57 does not, both do.
    assert set(draw(logits, Row(top_k=2, top_p=0.75), 300).tolist()) == {0, 1}
    assert set(draw(logits, Row(top_k=2, top_p=0.5), 300).tolist()) == {0}
    assert set(draw(logits, Row(top_p=0.5), 300).tolist()) == {0, 1}


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(logits, Row(min_p=0.25), 300).tolist()) == {0, 1, 2}
    assert set(draw(logits, Row(min_p=0.5), 300).tolist()) == {0, 1}
    assert set(draw(logits, Row(min_p=1.0), 50).tolist()) == {0}


# -- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [[math.nan], [math.inf], [-math.inf] * 100, [math.nan] + [-math.inf] * 99])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_sound_logits_fails_alone(fault: list[float], temperature: float) -> None:
    rows = [Row(seed=i, temperature=temperature) for i in range(5)]
    logits = randn(5, 100)
    sound, _ = run(logits, rows)
    logits[2, : len(fault)] = torch.tensor(fault)
    tokens, failed = run(logits, rows)
    assert failed == [False, False, True, False, False]
    assert tokens == [*sound[:2], 0, *sound[3:]]


def test_a_nan_under_a_mask_fails_too() -> None:
    logits = torch.zeros(1, 40)
    logits[0, 3] = math.nan
    assert run(logits, [Row(allowed={5, 6})])[1] == [True]


def test_minus_infinity_is_a_sound_logit() -> None:
    logits = torch.full((1, 40), -math.inf)
    logits[0, 9] = -3.0
    assert run(logits, [Row(top_p=0.9, repetition=1.1, output=[3, 9])]) == ([9], [False])


def test_a_row_whose_every_token_is_masked_fails_alone() -> None:
    rows = [Row(banned=list(range(40))), Row(seed=1)]
    tokens, failed = run(randn(2, 40), rows)
    assert failed == [True, False]
    assert tokens[0] == 0


# -- bookkeeping ----------------------------------------------------------------------------------------------------


def test_record_tokens_counts_and_remembers() -> None:
    last, counts = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 10, dtype=torch.int32)
    slots = torch.tensor([2, 0])
    record_tokens(torch.tensor([7, 3]), slots, last, counts)
    record_tokens(torch.tensor([7, 4]), slots, last, counts)
    assert last.tolist() == [4, 0, 7, 0]
    assert torch.nonzero(counts).tolist() == [[0, 3], [0, 4], [2, 7]]
    assert counts[2, 7] == 2
    record_tokens(torch.tensor([9]), torch.tensor([1]), last)
    assert last.tolist() == [4, 9, 7, 0]


def test_refuses_arguments_that_do_not_fit() -> None:
    logits, failed = randn(1, 40), torch.zeros(1, dtype=torch.bool)
    params = make_params([Row()], 40)
    with pytest.raises(ValueError, match=r"sample: out has shape \[2\]"):
        sample(logits, params, poisoned(2, dtype=torch.int64), failed)
    with pytest.raises(ValueError, match=r"sample: logits is torch.bfloat16"):
        sample(logits.bfloat16(), params, poisoned(1, dtype=torch.int64), failed)
    with pytest.raises(ValueError, match=r"sample: prompt_mask has shape \[1, 40\], expected \[1, 50\]"):
        sample(randn(1, 50), params, poisoned(1, dtype=torch.int64), failed)
    with pytest.raises(ValueError, match=r"record_tokens: output_counts has shape"):
        record_tokens(torch.tensor([1]), torch.tensor([0]), torch.zeros(2, dtype=torch.int64), torch.zeros(1, 5))
