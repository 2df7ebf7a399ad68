"""Words that an answer may not have."""

from __future__ import annotations

import pytest

from app.errors import RequestError
from app.text.grammars.without import without
from tests.text.grammars.matching import allows


@pytest.mark.parametrize("text", ["", "a sea", "se", "\n", "Sea lions", 'quo"t'])
def test_other_text_is_free(text: str) -> None:
    assert allows(without(["lake", 'quo"te', "sea "], param="bad_words"), text)


@pytest.mark.parametrize("text", ["lake", "a lake of", "\nsea lion", 'quo"te', "flakes"])
def test_words_never_come(text: str) -> None:
    assert not allows(without(["lake", 'quo"te', "sea "], param="bad_words"), text)


@pytest.mark.parametrize("words", [[""], ["a", ""], ["\ud800"], ["a"] * 257, ["a" * 5000]])
def test_what_is_no_word_is_refused(words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        without(words, param="bad_words")
    assert (caught.value.status, caught.value.param) == (400, "bad_words")
