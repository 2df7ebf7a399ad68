"""What an index of n-grams finds, whatever it has forgotten."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from app.engine.drafts.ngrams import Match, NGramIndex


def index_of(*texts: list[int], size: int = 3, capacity: int = 1000) -> NGramIndex:
    index = NGramIndex(size, capacity)
    for number, text in enumerate(texts):
        if number:
            index.end_text()
        index.append(text)
    return index


def test_what_followed_the_same_tokens_is_found() -> None:
    index = index_of([1, 2, 3, 4, 5, 6, 7])
    assert index.find([9, 2, 3, 4], 2) == Match(3, [5, 6])
    assert index.find([1, 2, 3, 4], 3) == Match(4, [5, 6, 7])
    assert index.find([2, 3, 9], 2) is None
    assert index.find([3, 4], 2) is None


def test_the_longest_match_counts_and_the_latest_of_equals() -> None:
    index = index_of([0, 1, 2, 3, 50, 8, 1, 2, 3, 60, 9, 1, 2, 3, 70])
    assert index.find([4, 1, 2, 3], 1) == Match(3, [70])
    assert index.find([0, 1, 2, 3], 1) == Match(4, [50])
    assert index.find([8, 1, 2, 3], 1) == Match(4, [60])


def test_a_text_that_repeats_itself_goes_on_repeating() -> None:
    text = [1, 2, 3, 1, 2, 3]
    assert index_of(text).find(text, 7) == Match(3, [1, 2, 3, 1, 2, 3, 1])


def test_a_guess_ends_with_its_text() -> None:
    index = index_of([1, 2, 3, 4], [5, 6, 7])
    assert index.find([1, 2, 3], 5) == Match(3, [4])
    assert index.find([2, 3, 4], 5) == Match(3, [])


def test_tokens_that_share_a_key_are_told_apart() -> None:
    other = 1 << 20
    assert index_of([other + 1, 2, 3, 4]).find([1, 2, 3], 1) is None


@given(
    text=st.lists(st.integers(0, 3), max_size=120),
    cuts=st.lists(st.integers(0, 120), max_size=4),
    size=st.integers(1, 4),
    capacity=st.sampled_from([2, 7, 40, 1000]),
    count=st.integers(1, 6),
)
def test_whatever_is_found_stood_there(text: list[int], cuts: list[int], size: int, capacity: int, count: int) -> None:
    index = NGramIndex(size, capacity)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for begin, end in itertools.pairwise(bounds):
        index.append(text[begin:end])
    found = index.find(text, count)
    if found is not None:
        assert found.length >= size
        tail = text[-found.length :]
        places = [n for n in range(found.length, len(text)) if text[n - found.length : n] == tail]
        going_on = [(text[n:] + text[n:] * count)[: len(found.token_ids)] for n in places]
        assert found.token_ids in going_on
    elif capacity == 1000 and len(text) >= size:
        tail = text[-size:]
        assert all(text[n - size : n] != tail for n in range(size, len(text)))
