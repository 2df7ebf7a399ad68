from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store import ModelFiles
from app.store.gguf_tokenizer import build_tokenizer
from app.text.detokenizer import IncrementalDetokenizer
from app.text.tokenizer import Tokenizer
from tests.byte_tokenizer import EOS_ID, VOCAB_SIZE, build_byte_tokenizer
from tests.gguf_metadata import sentencepiece_metadata

BYTE_LEVEL = Tokenizer(build_byte_tokenizer().to_str())
SENTENCEPIECE = Tokenizer(build_tokenizer(sentencepiece_metadata()).to_str())


def pieces(detokenizer: IncrementalDetokenizer, token_ids: list[int], cuts: set[int]) -> list[str]:
    """What comes out when the ids are pushed in groups that begin at ``cuts``."""
    edges = sorted({0, len(token_ids)} | {cut for cut in cuts if cut < len(token_ids)})
    groups = [token_ids[a:b] for a, b in zip(edges, [*edges[1:], len(token_ids)], strict=True)]
    return [*(detokenizer.push(group) for group in groups), detokenizer.flush()]


@given(st.lists(st.integers(0, VOCAB_SIZE + 1), max_size=40), st.booleans(), st.sets(st.integers(0, 40)))
def test_pieces_make_the_whole_for_any_bytes(token_ids: list[int], skip: bool, cuts: set[int]) -> None:
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL, skip)
    assert "".join(pieces(detokenizer, token_ids, cuts)) == BYTE_LEVEL.decode(token_ids, skip)


@given(st.lists(st.integers(0, SENTENCEPIECE.vocab_size), max_size=40), st.booleans(), st.sets(st.integers(0, 40)))
def test_pieces_make_the_whole_with_byte_fallback(token_ids: list[int], skip: bool, cuts: set[int]) -> None:
    detokenizer = IncrementalDetokenizer(SENTENCEPIECE, skip, starts_text=True)
    assert "".join(pieces(detokenizer, token_ids, cuts)) == SENTENCEPIECE.decode(token_ids, skip)


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: ModelFiles) -> Tokenizer:
    return Tokenizer.load(smollm2.tokenizer_file)


@given(token_ids=st.lists(st.integers(0, 49_200), max_size=40), skip=st.booleans(), cuts=st.sets(st.integers(0, 40)))
def test_pieces_make_the_whole_on_a_real_vocabulary(
    smollm2_tokenizer: Tokenizer, token_ids: list[int], skip: bool, cuts: set[int]
) -> None:
    detokenizer = IncrementalDetokenizer(smollm2_tokenizer, skip)
    assert "".join(pieces(detokenizer, token_ids, cuts)) == smollm2_tokenizer.decode(token_ids, skip)


@given(text=st.text("aé€你好🎉👨‍👩‍👧\u0301 ", max_size=20))
def test_text_comes_out_whole_characters_only(smollm2_tokenizer: Tokenizer, text: str) -> None:
    detokenizer = IncrementalDetokenizer(smollm2_tokenizer)
    out = [detokenizer.push([token_id]) for token_id in smollm2_tokenizer.encode(text)]
    assert "\ufffd" not in "".join(out)
    assert "".join(out) == text
    assert detokenizer.flush() == ""


def test_a_character_comes_with_its_last_byte() -> None:
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL)
    assert [detokenizer.push([byte]) for byte in "🎉".encode()] == ["", "", "", "🎉"]


def test_an_unfinished_character_is_replaced_at_the_end_only() -> None:
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL)
    assert detokenizer.push([*b"a", 0xF0, 0x9F]) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_control_tokens_are_left_out_unless_wanted() -> None:
    assert IncrementalDetokenizer(BYTE_LEVEL).push([97, EOS_ID]) == "a"
    assert IncrementalDetokenizer(BYTE_LEVEL, skip_special_tokens=False).push([97, EOS_ID]) == "a</s>"


def test_text_that_goes_on_from_a_prompt_keeps_its_leading_space() -> None:
    prompt, answer = SENTENCEPIECE.encode("the"), SENTENCEPIECE.encode("world", add_special_tokens=False)
    assert SENTENCEPIECE.decode(prompt + answer) == "the world"
    assert IncrementalDetokenizer(SENTENCEPIECE).push(answer) == " world"
    assert IncrementalDetokenizer(SENTENCEPIECE, starts_text=True).push(answer) == "world"
