"""Long texts are refused or cut without being tokenised whole, with the same result."""

from __future__ import annotations

import itertools
import random

import pytest

from app.errors import RequestError
from app.store import ModelFiles
from app.store.gguf_tokenizer import build_tokenizer
from app.text import long_text
from app.text.breaks import BREAK
from app.text.long_text import FEW_CHARACTERS, exceeds, last_part
from app.text.tokenizer import TextOptions, Tokenizer
from tests.gguf_metadata import byte_level_metadata, sentencepiece_metadata
from tests.serving.rig import byte_tokenizer

WORDS = ["tree", " river", "  ", "\n\n", "über", " 1234", "!", " the", "ing", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "你好"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PIECE", 100)


@pytest.fixture(params=["bytes", "sentencepiece", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return byte_tokenizer()
    if request.param == "sentencepiece":
        return Tokenizer(build_tokenizer(sentencepiece_metadata()).to_str(), bos_token="<s>", eos_token="</s>")
    files: ModelFiles = request.getfixturevalue("smollm2")
    return Tokenizer.load(files.tokenizer_file)


class Counter:
    """Counts a token a character, or as many as it is told a piece; knows what it was asked."""

    def __init__(self, tokens: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self._tokens = tokens

    def __call__(self, start: int, end: int) -> int:
        self.asked.append((start, end))
        return end - start if self._tokens is None else self._tokens


def test_what_cannot_fit_is_told_from_what_may() -> None:
    count = Counter()
    assert not exceeds(1000, 1000 // FEW_CHARACTERS, count, 4)  # few enough to be tokenised at once
    assert exceeds(10_000, 10, count, 4)  # however it is tokenised
    assert not count.asked
    assert exceeds(5000, 400, count, 4)
    assert count.asked == [(start, start + 100) for start in range(0, 500, 100)]  # the rest was not looked at
    count = Counter(tokens=4)
    assert not exceeds(4950, 400, count, 4)
    assert count.asked == [(start, min(start + 100, 4950)) for start in range(0, 4950, 100)]


def test_only_the_end_is_taken_when_only_the_last_tokens_count() -> None:
    count = Counter()
    assert 250 <= 5000 - last_part(5000, 250, count, 4) <= 400
    assert len(count.asked) == 3
    assert last_part(5000, 10_000, count, 4) == 0
    assert last_part(5, 1, count, 4) == 0


@pytest.mark.parametrize("keep", [1, 7, 100])
def test_the_last_tokens_are_those_of_the_whole_text(tokenizer: Tokenizer, keep: int) -> None:
    rng = random.Random(keep)
    for _ in range(20):
        text = "".join(rng.choices(WORDS, k=500))
        assert tokenizer.encode(text, keep_last=keep, max_tokens=200) == tokenizer.encode(text)[-keep:]


def test_no_text_that_fits_is_refused(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(30):
        text = "".join(rng.choices(WORDS, weights=[rng.random() ** 4 for _ in WORDS], k=400))
        ids = tokenizer.encode(text)
        assert tokenizer.encode(text, max_tokens=len(ids)) == ids
        with pytest.raises(RequestError, match="more tokens than the 9 that fit") as raised:
            tokenizer.encode(text * 9, max_tokens=9)
        assert raised.value.code == "context_length_exceeded"


@pytest.mark.parametrize("keep", [1, 7, 100])
def test_control_tokens_and_breaks_are_kept_where_they_are_cut_off(tokenizer: Tokenizer, keep: int) -> None:
    rng = random.Random(keep)
    control = sorted(tokenizer.special_tokens)
    for _ in range(20):
        pieces = rng.choices([*WORDS, *control, BREAK], k=500)
        text = "".join(pieces)
        starts = itertools.accumulate(map(len, pieces), initial=0)
        breaks = [start + 1 for start, piece in zip(starts, pieces, strict=False) if piece in control][::2]
        whole = tokenizer.encode(text, parse_special=True, breaks=breaks)
        assert sum(map(tokenizer.is_special, whole)) >= len(breaks) - 1
        cut = tokenizer.encode(text, parse_special=True, breaks=breaks, keep_last=keep, max_tokens=200)
        assert cut == whole[-keep:]
        assert tokenizer.encode(text, parse_special=True, breaks=breaks, max_tokens=len(whole)) == whole


def test_a_long_prompt_of_control_tokens_alone_fits(tokenizer: Tokenizer) -> None:
    text = max(tokenizer.special_tokens, key=len) * 300
    options: TextOptions = {"parse_special": True, "add_special_tokens": False, "max_tokens": 300}
    assert len(tokenizer.encode(text, **options)) == 300
    assert len(tokenizer.encode_with_offsets(text, **options).token_ids) == 300


def test_added_tokens_are_among_the_last() -> None:
    metadata = byte_level_metadata("gpt-2", add_bos_token=True, add_eos_token=True)
    tokenizer = Tokenizer(build_tokenizer(metadata).to_str())
    assert tokenizer.encode("ab" * 1000, keep_last=3) == [97, 98, 257]
    assert tokenizer.encode("ab", keep_last=3) == [97, 98, 257]
    assert tokenizer.encode("<|begin|>ab", parse_special=True, keep_last=9) == [256, 97, 98, 257]
    assert tokenizer.encode("a<|begin|>" + "b" * 1000, parse_special=True, keep_last=1003) == [
        97,
        256,
        *b"b" * 1000,
        257,
    ]


def test_offsets_have_the_same_bound(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(10):
        text = "".join(rng.choices([*WORDS, *sorted(tokenizer.special_tokens), BREAK], k=400))
        encoded = tokenizer.encode_with_offsets(text, parse_special=True)
        count = len(encoded.token_ids)
        assert tokenizer.encode_with_offsets(text, parse_special=True, max_tokens=count) == encoded
        with pytest.raises(RequestError, match="more tokens than the 9 that fit"):
            tokenizer.encode_with_offsets(text * 9, max_tokens=9)
