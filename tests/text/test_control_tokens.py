from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.control_tokens import ControlTokens

CONTROL = ControlTokens(["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<s>x", "!", "Mask"])
PIECES = st.lists(
    st.sampled_from(["<", "|", "im_", "end", "|>", "<|im_start|>", "s>", "x", "M", "ask", " "]), max_size=8
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a <|im_end|> b", ["<|im_end|>"]),
        ("<<s>></s>", ["<s>", "</s>"]),
        ("<s>x", ["<s>", "<s>x"]),
        ("<|im_", []),
        ("!", []),
        ("", []),
    ],
)
def test_all_tokens_of_a_text_are_found(text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in CONTROL.find(text)] == found


@given(PIECES.map("".join))
def test_nothing_is_missed(text: str) -> None:
    expected = {
        (start, start + len(token))
        for token in CONTROL.tokens
        for start in range(len(text))
        if text.startswith(token, start)
    }
    found = list(CONTROL.find(text))
    assert set(found) == expected
    assert len(found) == len(expected)


@given(PIECES.map("".join))
def test_text_that_cannot_take_part_spells_no_token(text: str) -> None:
    if not CONTROL.may_come_from(text):
        assert not list(CONTROL.find(text))
        assert not list(CONTROL.find(text.title()))


@pytest.mark.parametrize(
    ("text", "beginning", "ending"),
    [("a <|im_", "<|im_", ""), ("end|> <", "<", "end|>"), ("<s>", "<s>", ""), ("plain", "", ""), ("", "", "")],
)
def test_pieces_at_the_ends_of_a_text(text: str, beginning: str, ending: str) -> None:
    assert (CONTROL.beginning_at_end(text), CONTROL.ending_at_start(text)) == (beginning, ending)


def test_long_texts_of_false_starts() -> None:
    assert not list(CONTROL.find("<|im_" * 100_000))


def test_there_may_be_none() -> None:
    none = ControlTokens([])
    assert not none.may_come_from("<s>")
    assert not list(none.find("<s>"))
