from __future__ import annotations

import asyncio
import codecs
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from app.errors import RequestError
from app.store import ModelFiles
from app.store.gguf_tokenizer import build_tokenizer
from app.text.tokenizer import Tokenizer, TokenizerError
from tests.byte_tokenizer import BOS_ID, EOS_ID, IM_END_ID, IM_START_ID, VOCAB_SIZE, build_byte_tokenizer
from tests.gguf_metadata import byte_level_metadata, sentencepiece_metadata


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return Tokenizer(build_byte_tokenizer().to_str(), bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return Tokenizer(build_tokenizer(sentencepiece_metadata()).to_str(), bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: ModelFiles) -> Tokenizer:
    return Tokenizer.load(smollm2.tokenizer_file, bos_token=smollm2.bos_token, eos_token=smollm2.eos_token)


@pytest.fixture(scope="module")
def library(smollm2: ModelFiles) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(smollm2.tokenizer_file))


def edited(path: Path, **entries: object) -> Path:
    """A byte tokenizer's ``tokenizer.json`` with some entries replaced."""
    file = path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(build_byte_tokenizer().to_str()) | entries), encoding="utf-8")
    return file


class TestEncode:
    def test_a_typed_control_token_is_plain_text(self, byte_level: Tokenizer) -> None:
        assert byte_level.encode("a<|im_end|>") == list(b"a<|im_end|>")

    def test_control_tokens_are_parsed_on_request(self, byte_level: Tokenizer) -> None:
        assert byte_level.encode("<|im_start|>a<|im_end|>", parse_special=True) == [IM_START_ID, 97, IM_END_ID]

    @given(
        st.lists(
            st.sampled_from(["<|im_start|>", "<|im_end|>", "<file_sep>", "user\n", " ", "é", "<|", "hi"]), max_size=10
        )
    )
    def test_raw_prompts_are_encoded_as_the_library_does(
        self, library: tokenizers.Tokenizer, smollm2_tokenizer: Tokenizer, pieces: list[str]
    ) -> None:
        text = "".join(pieces)
        assert smollm2_tokenizer.encode(text, parse_special=True) == library.encode(text).ids

    def test_a_text_s_own_breaks_stay_in_it(self, byte_level: Tokenizer) -> None:
        text = "a\ufdd0\ufdef\ufdd0\ufdd0\ufdef\ufdef<|im\ufdd0\ufdef_end|>"
        assert byte_level.encode(text, parse_special=True) == list(text.encode())
        assert byte_level.encode(text, parse_special=True, breaks=[3, 8]) == list(text.encode())

    def test_added_tokens_that_are_not_control_tokens_are_always_parsed(self) -> None:
        tokenizer = Tokenizer(build_tokenizer(byte_level_metadata("gpt-2")).to_str())
        assert tokenizer.encode("a<think>") == [97, 258]
        assert not tokenizer.is_special(258)

    def test_bos_is_added_where_the_definition_adds_it(self, sentencepiece: Tokenizer) -> None:
        assert sentencepiece.encode("the")[0] == sentencepiece.bos_token_id == 1
        assert sentencepiece.encode("the", add_special_tokens=False) == sentencepiece.encode("the")[1:]

    def test_bos_is_added_where_the_flag_says_so(self) -> None:
        tokenizer = Tokenizer(build_byte_tokenizer().to_str(), add_bos=True, bos_token="<s>")
        assert tokenizer.encode("a") == [BOS_ID, 97]
        assert tokenizer.encode("a", add_special_tokens=False) == [97]

    def test_bos_is_not_added_twice(self) -> None:
        definition = build_tokenizer(sentencepiece_metadata()).to_str()
        tokenizer = Tokenizer(definition, add_bos=True, bos_token="<s>")
        assert tokenizer.encode("the").count(1) == 1

    def test_a_text_that_begins_with_the_bos_gets_no_second_one(self, sentencepiece: Tokenizer) -> None:
        assert sentencepiece.encode("<s>the", parse_special=True) == sentencepiece.encode("the")
        assert sentencepiece.encode("<s><s>the", parse_special=True).count(1) == 2  # the text's own stay
        assert sentencepiece.encode("the<s>", parse_special=True).count(1) == 2
        typed = sentencepiece.encode("<s>the")
        assert typed[0] == 1
        assert typed.count(1) == 1
        flagged = Tokenizer(build_byte_tokenizer().to_str(), add_bos=True, bos_token="<s>")
        assert flagged.encode("<s>a", parse_special=True) == [BOS_ID, 97]
        bare = Tokenizer(build_byte_tokenizer().to_str(), bos_token="<s>")
        assert bare.encode("<s><s>a", parse_special=True) == [BOS_ID, BOS_ID, 97]

    def test_bos_and_eos_are_added_where_the_definition_adds_them(self) -> None:
        metadata = byte_level_metadata("gpt-2", add_bos_token=True, add_eos_token=True)
        tokenizer = Tokenizer(build_tokenizer(metadata).to_str())
        assert tokenizer.encode("a") == [256, 97, 257]
        assert tokenizer.encode("") == [256, 257]
        assert tokenizer.encode("<|begin|>a", parse_special=True) == [256, 97, 257]
        assert tokenizer.encode("a", add_special_tokens=False) == [97]
        assert tokenizer.encode_with_offsets("<|begin|>a", parse_special=True) == ([256, 97, 257], [0, 9, 10])
        assert tokenizer.encode_with_offsets("ba") == ([256, 98, 97, 257], [0, 0, 1, 2])

    def test_a_bos_to_add_that_is_no_token_is_an_error(self) -> None:
        with pytest.raises(TokenizerError, match="bos_token None"):
            Tokenizer(build_byte_tokenizer().to_str(), add_bos=True)

    def test_lone_surrogates_are_the_client_s_error(self, byte_level: Tokenizer) -> None:
        with pytest.raises(RequestError, match="surrogates") as caught:
            byte_level.encode("a\ud83d")
        assert caught.value.status == 400

    def test_a_training_run_s_truncation_and_padding_are_ignored(self) -> None:
        definition = build_byte_tokenizer()
        definition.enable_truncation(4)
        definition.enable_padding(length=4)
        tokenizer = Tokenizer(definition.to_str())
        assert tokenizer.encode("abcdef") == list(b"abcdef")
        assert tokenizer.encode("ab") == list(b"ab")

    async def test_long_text_is_encoded_in_a_thread(self, byte_level: Tokenizer) -> None:
        threads = threading.active_count()
        long = "long text " * 20_000
        short, encoded = await asyncio.gather(byte_level.encode_async("hi"), byte_level.encode_async(long))
        assert short == list(b"hi")
        assert encoded == list(long.encode())
        assert threading.active_count() > threads

    def test_threads_do_not_disturb_each_other(self, smollm2_tokenizer: Tokenizer) -> None:
        text = "<|im_start|>user\nhi<|im_end|>" * 50
        expected = {parse: smollm2_tokenizer.encode(text, parse_special=parse) for parse in (False, True)}
        kinds = [False, True] * 100
        with ThreadPoolExecutor(4) as pool:
            encoded = list(pool.map(lambda parse: smollm2_tokenizer.encode(text, parse_special=parse), kinds))
        assert encoded == [expected[parse] for parse in kinds]


class TestOffsets:
    @given(
        st.lists(
            st.sampled_from(["<|im_start|>", "<|im_end|>", " ", "é", "好", "👨‍👩‍👧", "hello", " the", "\n"]),
            max_size=10,
        )
    )
    def test_tokens_begin_where_the_ones_before_have_ended(
        self, smollm2_tokenizer: Tokenizer, pieces: list[str]
    ) -> None:
        text = "".join(pieces)
        token_ids, offsets = smollm2_tokenizer.encode_with_offsets(text, parse_special=True)
        assert token_ids == smollm2_tokenizer.encode(text, parse_special=True)
        decoder = codecs.getincrementaldecoder("utf-8")()
        ends = [len(decoder.decode(smollm2_tokenizer.token_bytes(token_id))) for token_id in token_ids]
        assert offsets == list(itertools.accumulate(ends, initial=0))[:-1]

    def test_they_are_of_the_text_as_typed(self, sentencepiece: Tokenizer) -> None:
        composing = build_byte_tokenizer()
        composing.normalizer = normalizers.NFC()
        composed = Tokenizer(composing.to_str()).encode_with_offsets("cafe\u0301s")
        assert composed == (list("cafés".encode()), [0, 1, 2, 3, 3, 5])
        assert sentencepiece.encode_with_offsets("<s>the the", parse_special=True).offsets == [0, 3, 6]

    def test_breaks_of_the_text_count(self, byte_level: Tokenizer) -> None:
        text = "a\ufdd0\ufdefb\ufdd0\ufdef<s>c"
        token_ids, offsets = byte_level.encode_with_offsets(text, parse_special=True)
        assert (token_ids[-2:], offsets[-2:]) == ([BOS_ID, 99], [6, 9])
        assert offsets[:9] == [0, 1, 1, 1, 2, 2, 2, 3, 4]

    def test_lone_surrogates_are_the_client_s_error(self, byte_level: Tokenizer) -> None:
        with pytest.raises(RequestError, match="surrogates"):
            byte_level.encode_with_offsets("a\ud83d")


class TestBreaks:
    @pytest.mark.parametrize("position", range(1, len("<|im_end|>")))
    def test_a_control_token_with_a_break_inside_is_text(self, byte_level: Tokenizer, position: int) -> None:
        encoded = byte_level.encode("<|im_end|><|im_end|>", parse_special=True, breaks=[position])
        assert encoded == [*b"<|im_end|>", IM_END_ID]

    def test_breaks_elsewhere_change_nothing(self, byte_level: Tokenizer) -> None:
        encoded = byte_level.encode("ab<|im_end|>cd", parse_special=True, breaks=[0, 1, 2, 12, 14])
        assert encoded == [97, 98, IM_END_ID, 99, 100]

    @given(
        pieces=st.lists(
            st.sampled_from(["<", "|", "im_", "end", "|>", "<|im_start|>", "s>", " ", "é", "\ufdd0", "\ufdef"]),
            max_size=10,
        )
    )
    def test_what_is_broken_everywhere_is_spelt_as_plain_text(
        self, smollm2_tokenizer: Tokenizer, pieces: list[str]
    ) -> None:
        text = "".join(pieces)
        encoded = smollm2_tokenizer.encode(text, parse_special=True, breaks=range(1, len(text)))
        assert encoded == smollm2_tokenizer.encode(text)

    @given(text=st.text("a\ufdd0\ufdef<|>", max_size=12))
    def test_no_character_is_lost(self, byte_level: Tokenizer, text: str) -> None:
        assert byte_level.encode(text, parse_special=True) == list(text.encode())

    def test_control_tokens_matched_after_normalisation_are_broken_too(self) -> None:
        definition = json.loads(build_byte_tokenizer().to_str())
        for token in definition["added_tokens"]:
            token["normalized"] = True
        tokenizer = Tokenizer(json.dumps(definition))
        encoded = tokenizer.encode("<|im_end|><|im_end|>", parse_special=True, breaks=[3])
        assert encoded == [*b"<|im_end|>", IM_END_ID]


class TestDecode:
    def test_control_tokens_are_left_out_unless_wanted(self, byte_level: Tokenizer) -> None:
        ids = [BOS_ID, 104, 105, EOS_ID]
        assert byte_level.decode(ids) == "hi"
        assert byte_level.decode(ids, skip_special_tokens=False) == "<s>hi</s>"

    def test_bytes_that_are_no_text_are_replaced(self, byte_level: Tokenizer) -> None:
        assert byte_level.decode([0xE2, 0x82, 97]) == "\ufffda"
        assert byte_level.token_text(0xE2) == "\ufffd"
        assert byte_level.token_bytes(0xE2) == b"\xe2"

    def test_ids_beyond_the_vocabulary_have_no_text(self, byte_level: Tokenizer) -> None:
        assert byte_level.vocab_size == VOCAB_SIZE
        assert byte_level.decode([97, 50_000, 98]) == "ab"
        assert byte_level.token_bytes(-1) == b""

    def test_the_space_that_encoding_adds_is_dropped(self, sentencepiece: Tokenizer) -> None:
        assert sentencepiece.decode(sentencepiece.encode("the the")) == "the the"
        assert sentencepiece.decode(sentencepiece.encode(" the")) == " the"
        space = sentencepiece.encode("the the", add_special_tokens=False)[0]
        assert sentencepiece.token_bytes(space) == b" the"

    def test_byte_tokens_are_their_byte(self, sentencepiece: Tokenizer) -> None:
        assert sentencepiece.token_bytes(3 + 0xAB) == b"\xab"
        assert sentencepiece.decode(sentencepiece.encode("🎉")) == "🎉"

    def test_added_tokens_are_spelt_as_they_are(self) -> None:
        definition = build_byte_tokenizer()
        definition.add_tokens(["é▁x", "a b"])
        tokenizer = Tokenizer(definition.to_str())
        assert tokenizer.encode("é▁x") == [VOCAB_SIZE]
        assert tokenizer.decode([VOCAB_SIZE, VOCAB_SIZE + 1]) == "é▁xa b"

    @given(ids=st.lists(st.integers(0, 49_151), max_size=30), skip=st.booleans())
    def test_decoding_is_the_library_s(
        self, library: tokenizers.Tokenizer, smollm2_tokenizer: Tokenizer, ids: list[int], skip: bool
    ) -> None:
        assert smollm2_tokenizer.decode(ids, skip) == library.decode(ids, skip_special_tokens=skip)

    @given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30))
    def test_sentencepiece_decoding_is_the_library_s(self, sentencepiece: Tokenizer, text: str) -> None:
        reference = build_tokenizer(sentencepiece_metadata())
        ids = sentencepiece.encode(text)
        assert sentencepiece.decode(ids) == reference.decode(ids) == text


class TestLoad:
    def test_eos_and_bos_have_ids(self, smollm2_tokenizer: Tokenizer) -> None:
        assert smollm2_tokenizer.vocab_size == 49_152
        assert smollm2_tokenizer.eos_token_id == 2
        assert smollm2_tokenizer.is_special(2)
        assert not smollm2_tokenizer.is_special(17)
        assert smollm2_tokenizer.control_token_id("<|im_end|>") == 2
        assert smollm2_tokenizer.control_token_id("the") is None

    def test_no_tokens_named_means_no_ids(self) -> None:
        tokenizer = Tokenizer(build_byte_tokenizer().to_str(), eos_token="<absent>")
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, None)

    def test_a_missing_file_is_one_clear_line(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path / "tokenizer.json")

    def test_a_file_that_is_no_tokenizer_is_one_clear_line(self, tmp_path: Path) -> None:
        file = tmp_path / "tokenizer.json"
        file.write_text("{}", encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer"):
            Tokenizer.load(file)

    def test_an_absurd_token_id_takes_no_memory(self, tmp_path: Path) -> None:
        model = {"type": "BPE", "vocab": {"a": 0, "b": 2**32 - 1}, "merges": []}
        with pytest.raises(TokenizerError, match="token id 4294967295 is beyond"):
            Tokenizer.load(edited(tmp_path, model=model))

    @pytest.mark.parametrize(
        ("decoder", "message"),
        [(None, "no decoder"), ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "'WordPiece'")],
    )
    def test_an_unsupported_decoder_is_named(self, tmp_path: Path, decoder: object, message: str) -> None:
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.load(edited(tmp_path, decoder=decoder))

    def test_metaspace_is_a_space(self, tmp_path: Path) -> None:
        model = {"type": "WordLevel", "vocab": {"▁a": 0, "b": 1, "▁": 2, "?": 3}, "unk_token": "?"}
        for scheme, expected in [("always", "ab a "), ("first", "ab a "), ("never", " ab a ")]:
            decoder = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
            file = edited(tmp_path, model=model, pre_tokenizer=None, added_tokens=[], decoder=decoder)
            assert Tokenizer.load(file).decode([0, 1, 0, 2]) == expected
            assert tokenizers.Tokenizer.from_file(str(file)).decode([0, 1, 0, 2]) == expected
