"""Prompts that ask for the text between two others, in each family's own form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers

from app.errors import TooManyTokensError
from app.store.gguf_tokenizer import build_tokenizer
from app.text.infill import Infill, InfillText
from app.text.infill_formats import FORMATS
from app.text.tokenizer import Tokenizer
from tests.byte_tokenizer import BOS_ID, IM_END, IM_END_ID, VOCAB_SIZE, build_byte_tokenizer
from tests.gguf_metadata import sentencepiece_metadata

FIRST, SECOND, THIRD, FOURTH = range(VOCAB_SIZE, VOCAB_SIZE + 4)
QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def byte_tokenizer(*tokens: str, special: bool = False, normalized: bool = False, add_bos: bool = False) -> Tokenizer:
    """A tokenizer of bytes with further tokens, whose ids are :data:`FIRST` and so on."""
    library = build_byte_tokenizer()
    library.add_tokens([AddedToken(token, special=special, normalized=normalized) for token in tokens])
    return Tokenizer(library.to_str(), add_bos=add_bos, bos_token="<s>")


def asked(tokenizer: Tokenizer, prefix: str, suffix: str, **options: Any) -> InfillText:
    infill = Infill.find(tokenizer, {})
    assert infill is not None
    return asyncio.run(infill.encode(prefix, suffix, **options))


@pytest.mark.parametrize(
    "tokens",
    [
        QWEN,
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ],
)
def test_families_that_read_the_prefix_first(tokens: tuple[str, ...]) -> None:
    text = asked(byte_tokenizer(*tokens), "ab", "cd")
    assert text.token_ids == [FIRST, *b"ab", SECOND, *b"cd", THIRD]
    assert text.span == (1, 3)


def test_codestral_reads_the_suffix_first_and_has_no_middle() -> None:
    text = asked(byte_tokenizer("[PREFIX]", "[SUFFIX]", "[MIDDLE]", add_bos=True), "ab", "cd")
    assert text.token_ids == [BOS_ID, SECOND, *b"cd", FIRST, *b"ab"]
    assert text.span == (5, 7)


def test_seed_coder_reads_the_suffix_first() -> None:
    text = asked(byte_tokenizer("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"), "ab", "cd")
    assert text.token_ids == [SECOND, *b"cd", FIRST, *b"ab", THIRD]
    assert text.span == (4, 6)


def test_bos_is_added_where_the_tokenizer_does() -> None:
    tokenizer = byte_tokenizer(*QWEN, add_bos=True)
    assert asked(tokenizer, "a", "b").token_ids == [BOS_ID, FIRST, 97, SECOND, 98, THIRD]
    assert asked(tokenizer, "a", "b").span == (2, 3)
    assert asked(tokenizer, "a", "b", add_special_tokens=False).token_ids == [FIRST, 97, SECOND, 98, THIRD]


def test_no_row_can_be_taken_for_another() -> None:
    assert len({(row.prefix, row.suffix) for row in FORMATS}) == len(FORMATS)


def test_a_tokenizer_without_the_tokens_cannot() -> None:
    assert Infill.find(byte_tokenizer(), {}) is None
    assert Infill.find(byte_tokenizer(*QWEN[:2]), {}) is None  # two of three
    assert Infill.find(byte_tokenizer(), {"prefix_token": "<a>", "suffix_token": "<b>"}) is None


def test_tokens_that_the_files_name_are_taken() -> None:
    tokenizer = byte_tokenizer("<before>", "<after>", "<between>")
    named = {"prefix_token": "<before>", "suffix_token": "<after>", "middle_token": "<between>"}
    infill = Infill.find(tokenizer, named)
    assert infill is not None
    text = asyncio.run(infill.encode("a<after>", "b"))
    assert text.token_ids == [FIRST, *b"a<after>", SECOND, 98, THIRD]


def test_tokens_with_a_row_keep_its_order_where_the_files_name_them() -> None:
    tokenizer = byte_tokenizer("[PREFIX]", "[SUFFIX]")
    infill = Infill.find(tokenizer, {"prefix_token": "[PREFIX]", "suffix_token": "[SUFFIX]"})
    assert infill is not None
    assert asyncio.run(infill.encode("a", "b")).token_ids == [SECOND, 98, FIRST, 97]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_tokens_that_the_texts_spell_are_text(special: bool, normalized: bool) -> None:
    tokenizer = byte_tokenizer(*QWEN, special=special, normalized=normalized)
    prefix, suffix = f"a{QWEN[1]}{IM_END}", f"{QWEN[2]}b"
    expected = [FIRST, *prefix.encode(), SECOND, *suffix.encode(), THIRD]
    assert asked(tokenizer, prefix, suffix).token_ids == expected
    parsed = asked(tokenizer, prefix, suffix, parse_special=True)
    assert parsed.token_ids == [FIRST, 97, SECOND, IM_END_ID, SECOND, THIRD, 98, THIRD]


def test_offsets_are_those_of_the_prefix() -> None:
    library = build_byte_tokenizer()
    library.normalizer = normalizers.NFD()
    library.add_tokens(list(QWEN))
    prefix = f"é{IM_END}\ufdd0\ufdefx"  # normalised, spelt, and what looks like a break
    text = asked(Tokenizer(library.to_str()), prefix, f"é{QWEN[0]}", with_offsets=True)
    assert text.offsets is not None
    start, end = text.span
    assert len(text.offsets) == end - start
    assert bytes(text.token_ids[start:end]).decode() == f"e\u0301{IM_END}\ufdd0\ufdefx"
    assert text.offsets == [0] * 3 + list(range(1, 11)) + [11] * 3 + [12] * 3 + [13]


def test_the_suffix_gets_no_space_of_the_tokenizers() -> None:
    library = build_tokenizer(sentencepiece_metadata())
    library.add_tokens(["▁<PRE>", "▁<SUF>", "▁<MID>"])
    tokenizer = Tokenizer(library.to_str())
    assert tokenizer.leading_spaces == 1
    text = asked(tokenizer, "the world", "the world")
    start, end = text.span
    assert text.token_ids[start:end] == tokenizer.encode("the world", add_special_tokens=False)
    after = text.token_ids[end + 1 : -1]
    assert tokenizer.join_bytes(after, skip_special_tokens=True) == b"the world"
    assert tokenizer.join_bytes(text.token_ids[start:end], skip_special_tokens=True) == b" the world"


def test_ends_are_the_tokens_of_the_row_that_the_tokenizer_has() -> None:
    infill = Infill.find(byte_tokenizer(*QWEN, "<|file_sep|>"), {})
    assert infill is not None
    assert infill.ends == (FOURTH,)


def test_either_text_may_be_too_long() -> None:
    tokenizer = byte_tokenizer(*QWEN)
    for texts in (("a" * 10_000, "b"), ("a", "b" * 10_000)):
        with pytest.raises(TooManyTokensError):
            asked(tokenizer, *texts, max_tokens=8)


def test_long_texts_are_the_same_off_the_event_loop() -> None:
    tokenizer = byte_tokenizer(*QWEN)
    prefix = f"a{QWEN[0]}" * 2000
    assert asked(tokenizer, prefix, "b").token_ids == [FIRST, *prefix.encode(), SECOND, 98, THIRD]
    assert json.loads(json.dumps(asked(tokenizer, prefix, "b").span)) == [1, 1 + len(prefix)]
