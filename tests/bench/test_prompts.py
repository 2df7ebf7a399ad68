from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.arrivals import arrival_times
from app.bench.options import BenchError
from app.bench.prompts import Prompt, SyntheticPrompts, read_prompts


def synthetic(**overrides: Any) -> SyntheticPrompts:
    values: dict[str, Any] = {
        "kind": "ids",
        "input_len": (32,),
        "output_len": (8,),
        "prefix_len": 0,
        "id_range": (100, 5000),
    }
    return SyntheticPrompts(**values | overrides)


def take(prompts: SyntheticPrompts, seed: str, count: int = 50) -> list[Prompt]:
    return list(itertools.islice(prompts.generate(seed), count))


def test_lengths_are_gone_through_side_by_side() -> None:
    prompts = take(synthetic(input_len=(5, 9), output_len=(1, 2, 3)), "s", 6)
    assert [len(prompt.content) for prompt in prompts] == [5, 9, 5, 9, 5, 9]
    assert [prompt.max_tokens for prompt in prompts] == [1, 2, 3, 1, 2, 3]


def test_no_prompt_begins_like_another() -> None:
    starts = [tuple(prompt.content[:16]) for seed in ("1", "2", "1/warmup") for prompt in take(synthetic(), seed)]
    assert len(set(starts)) == len(starts)


def test_a_shared_prefix_is_shared_within_a_seed_only() -> None:
    prompts = synthetic(prefix_len=20)
    heads = {seed: {tuple(prompt.content[:20]) for prompt in take(prompts, seed)} for seed in ("1", "1/warmup")}
    assert {len(found) for found in heads.values()} == {1}
    assert heads["1"] != heads["1/warmup"]
    tails = [tuple(prompt.content[20:]) for prompt in take(prompts, "1")]
    assert {len(tail) for tail in tails} == {32}
    assert len(set(tails)) == len(tails)


def test_a_seed_gives_the_same_prompts_again() -> None:
    assert take(synthetic(), "7") == take(synthetic(), "7") != take(synthetic(), "8")


def test_ids_stay_in_their_range_and_words_are_text() -> None:
    ids = [token for prompt in take(synthetic(id_range=(10, 13)), "s") for token in prompt.content]
    assert set(ids) == {10, 11, 12}
    words = take(synthetic(kind="words", prefix_len=3), "s", 1)[0].content
    assert isinstance(words, str)
    assert len(words.split()) == 35


def test_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "Hi"}, {"prompt": [1, 2], "max_tokens": 3, "note": "other fields are for others"}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_prompts(file) == [Prompt("Hi", None), Prompt([1, 2], 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no prompts"), ('{"prompt": "a"}\n{"text": "b"}\n', "line 2"), ('{"prompt": 3}', "line 1"), ("x", "line 1")],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(BenchError, match=message):
        read_prompts(file)
    with pytest.raises(BenchError, match="No such file"):
        read_prompts(tmp_path / "absent")


@given(st.floats(0.01, 1000), st.floats(0.05, 20), st.integers(0, 2**32))
def test_arrivals_follow_the_seed(rate: float, burstiness: float, seed: int) -> None:
    times = list(itertools.islice(arrival_times(rate, burstiness, seed), 20))
    assert times == list(itertools.islice(arrival_times(rate, burstiness, seed), 20))
    assert times == sorted(times)
    assert times != list(itertools.islice(arrival_times(rate, burstiness, seed + 1), 20))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness(burstiness: float) -> None:
    times = [0.0, *itertools.islice(arrival_times(50.0, burstiness, 1), 20_000)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert variance / mean**2 == pytest.approx(1 / burstiness, rel=0.15)
