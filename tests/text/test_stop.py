from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.stop import StopMatcher


def naive_cut(text: str, stops: list[str], include_stop: bool) -> tuple[str, str | None]:
    """The specification: grow the text a character at a time, look for a stop string at its end."""
    for end in range(1, len(text) + 1):
        endings = [stop for stop in stops if text[:end].endswith(stop)]
        if endings:
            stop = max(endings, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    return text, None


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


letters = st.text("ab\n\u20ac", max_size=30)
stop_lists = st.lists(st.text("ab\n\u20ac", min_size=1, max_size=5), max_size=4)


@given(letters, stop_lists, st.booleans(), st.lists(st.integers(0, 100), max_size=8))
def test_any_chunking_gives_what_a_search_of_the_whole_text_gives(
    text: str, stops: list[str], include_stop: bool, cuts: list[int]
) -> None:
    matcher = StopMatcher(stops, include_stop)
    released, matched = "", None
    for piece in cut(text, cuts):
        result = matcher.push(piece)
        released += result.text
        matched = matched or result.stop
    released += matcher.flush()
    assert (released, matched) == naive_cut(text, stops, include_stop)


@given(letters, stop_lists, st.lists(st.integers(0, 100), max_size=8))
def test_no_more_is_held_than_could_begin_a_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher = StopMatcher(stops)
    seen = ""
    for piece in cut(text, cuts):
        if matcher.push(piece).stop:
            return
        seen += piece
        beginnings = [stop[:size] for stop in stops for size in range(1, len(stop))]
        longest = max((len(beginning) for beginning in beginnings if seen.endswith(beginning)), default=0)
        assert matcher.held_chars == longest


def test_a_stop_string_spread_over_pieces_never_leaks() -> None:
    matcher = StopMatcher(["</answer>"])
    assert matcher.push("yes").text == "yes"
    assert matcher.push("</ans").text == ""
    result = matcher.push("wer> and more")
    assert (result.text, result.stop) == ("", "</answer>")
    assert matcher.push("even more").text == ""
    assert matcher.flush() == ""


def test_a_false_start_is_released_as_soon_as_it_cannot_match() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("one\n").text == "one"
    assert matcher.push("two").text == "\ntwo"
    assert matcher.push("\n\nUse").text == ""
    assert matcher.flush() == "\n\nUse"


def test_of_stops_that_end_together_the_longest_wins() -> None:
    result = StopMatcher(["d", "cd", "bcd"]).push("abcd")
    assert (result.text, result.stop) == ("a", "bcd")


def test_the_stop_that_is_complete_first_wins() -> None:
    result = StopMatcher(["abcd", "bc"]).push("xabcd")
    assert (result.text, result.stop) == ("xa", "bc")


def test_a_long_stop_costs_the_same_a_character() -> None:
    stop = "a" * 2_000 + "b"
    matcher = StopMatcher([stop])
    released = sum(len(matcher.push("a").text) for _ in range(50_000))
    assert released + matcher.held_chars == 50_000
    assert matcher.held_chars == 2_000


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
