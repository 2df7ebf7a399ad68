from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.store import ModelFiles
from app.store.gguf_tokenizer import GGUFTokenizerError, UnknownPreTokenizer, build_tokenizer
from tests.gguf_metadata import SPM_CHARACTERS, byte_level_metadata, sentencepiece_metadata


def ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool = False) -> list[int]:
    encoded: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return encoded


def words(pre: str, text: str) -> list[str]:
    """How a named pre-tokenizer cuts a text."""
    pre_tokenizer = build_tokenizer(byte_level_metadata(pre, add_bos_token=False)).pre_tokenizer
    return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: ModelFiles) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2.tokenizer_file))


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return build_tokenizer(sentencepiece_metadata())


class TestSmolLM2:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Hello world 12345", [19556, 905, 216, 33, 34, 35, 36, 37]),
            ("  lead", [216, 1022]),
            ("a\n\n\n  b   c  ", [81, 1116, 3805, 278, 256, 265, 256]),
            ("def f(x):\n    return x**2\t\n", [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 197, 198]),
            ("2024年", [34, 32, 34, 36, 32090, 129]),
            ("<|im_start|>user\nhi<|im_end|>", [1, 4093, 198, 6004, 2]),
            # Digits of every script stand alone, so the space before ½ is a token of its own.
            (" ½", [216, 16738]),
        ],
    )
    def test_known_ids(self, smollm2_tokenizer: Tokenizer, text: str, expected: list[int]) -> None:
        assert ids(smollm2_tokenizer, text) == expected

    def test_ids_are_those_of_transformers_conversion(self, smollm2_tokenizer: Tokenizer, smollm2: ModelFiles) -> None:
        from transformers import AutoTokenizer

        weights = smollm2.weights[0]
        reference = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        texts = [
            "It's a test: we'll see what they'd say, WE'LL SEE.",
            "你好，世界！今天天气怎么样？ 日本語のテキスト 한국어",
            "🎉👨‍👩‍👧 e\u0301 ﷽\u200b \u00a0\u3000x",
            "\t\tif a != b:\r\n\t\t\treturn {'k': [1, 22, 333]}\r\n",
            "   \n \n\n   trailing   ",
            "\x00\x7f\ufffd\U0010ffff",
            "<|endoftext|><|im_start|>system\n<repo_name>x<file_sep>",
            "",
        ]
        for text in texts:
            assert ids(smollm2_tokenizer, text) == reference.encode(text, add_special_tokens=False), text

    # The vocabulary has no token for a few control characters, nor for the lead bytes of unassigned planes.
    @given(
        text=st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"))
    )
    def test_any_text_survives(self, smollm2_tokenizer: Tokenizer, text: str) -> None:
        assert smollm2_tokenizer.decode(ids(smollm2_tokenizer, text), skip_special_tokens=False) == text

    def test_control_tokens_are_special(self, smollm2_tokenizer: Tokenizer) -> None:
        special = {token.content for token in smollm2_tokenizer.get_added_tokens_decoder().values() if token.special}
        assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} <= special
        assert len(special) == 17

    def test_no_bos_is_added(self, smollm2_tokenizer: Tokenizer) -> None:
        assert ids(smollm2_tokenizer, "hi", add_special_tokens=True) == ids(smollm2_tokenizer, "hi")


class TestPreTokenizers:
    @pytest.mark.parametrize("pre", ["smollm", "starcoder", "refact", "command-r"])
    def test_single_digits_then_gpt2(self, pre: str) -> None:
        assert words(pre, "it's 1234x  y\n\n z") == ["it", "'s", " ", "1", "2", "3", "4", "x", " ", " y", "\n\n", " z"]

    @pytest.mark.parametrize("pre", ["gpt-2", "default", "exaone4", "olmo"])
    def test_gpt2(self, pre: str) -> None:
        text = "it's IT'S 1234x  y!!\n\n z"
        assert words(pre, text) == ["it", "'s", " IT", "'", "S", " 1234", "x", " ", " y", "!!", "\n\n", " z"]

    @pytest.mark.parametrize(
        "pre", ["llama-bpe", "llama3", "llama-v3", "lfm2", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"]
    )
    def test_llama3_takes_three_digits(self, pre: str) -> None:
        text = "IT'S 1234567 (ok)!\n\nx\u00a0y  z\n "
        expected = ["IT", "'S", " ", "123", "456", "7", " (", "ok", ")!\n\n", "x", "\u00a0y", " ", " z", "\n", " "]
        assert words(pre, text) == expected

    @pytest.mark.parametrize("pre", ["qwen2", "deepseek-r1-qwen"])
    def test_qwen2_takes_one_digit(self, pre: str) -> None:
        text = "we'Ve 123 你好，世界.foo\r\n\r\n  bar\t\tbaz"
        expected = ["we", "'Ve", " ", "1", "2", "3", " 你好", "，世界", ".foo", "\r\n\r\n", " ", " bar", "\t", "\tbaz"]
        assert words(pre, text) == expected

    def test_qwen35_keeps_marks_with_their_letters(self) -> None:
        text = "we've 12 नमस्ते x\u0301\u0331!\u0301"
        expected = ["we", "'ve", " ", "1", "2", " नमस्ते", " x\u0301\u0331", "!\u0301"]
        assert words("qwen35", text) == expected
        assert words("qwen2", text) != expected

    def test_tekken_splits_at_the_case_of_letters(self) -> None:
        text = "HelloWorld JSONParser 12 a/b//\n"
        expected = ["Hello", "World", " JSONParser", " ", "1", "2", " a", "/b", "//\n"]
        assert words("tekken", text) == expected

    def test_gpt4o_keeps_contractions_with_their_word(self) -> None:
        text = "HelloWorld JSONParser's 12345 I'LL a/b//\n"
        expected = ["Hello", "World", " JSONParser's", " ", "123", "45", " I'LL", " a", "/b", "//\n"]
        assert words("gpt-4o", text) == expected

    def test_deepseek_v3_cuts_out_digits_then_han_and_kana(self) -> None:
        text = "It's 12345 a_name, 你好，カタx\u0301!!\n\n  $y ½"
        expected = ["It", "'s", " ", "123", "45", " a", "_name", ",", " ", "你好", "，", "カタ"]
        assert words("deepseek-v3", text) == [*expected, "x\u0301", "!!\n\n", " ", " $", "y", " ", "½"]

    def test_deepseek_coder_takes_line_breaks_and_digits_alone(self) -> None:
        text = "if x+1:\r\n\treturn  12, 你好。\u0ee1"
        expected = ["if", " x", "+", "1", ":", "\r", "\n", "\treturn", "  ", "1", "2", ",", " ", "你好", "。", "\u0ee1"]
        assert words("deepseek-coder", text) == expected

    def test_deepseek_llm_cuts_words_again_by_each_rule(self) -> None:
        """Its third rule takes what lies between a colon and a tilde, letters included."""
        text = "Straße Ωж x12 (ok)！\n 你好\u0561 \U00010400\U0001d400  "
        expected = ["Stra", "ß", "e", " Ωж", " x", "1", "2", " (", "ok", ")！", "\n", " ", "你好"]
        assert words("deepseek-llm", text) == [*expected, "\u0561", " \U00010400", "\U0001d400", "  "]

    @pytest.mark.parametrize("pre", ["qwen2", "olmo"])
    def test_characters_are_composed(self, pre: str) -> None:
        tokenizer = build_tokenizer(byte_level_metadata(pre))
        assert ids(tokenizer, "e\u0301") == ids(tokenizer, "\u00e9")

    @pytest.mark.parametrize("pre", ["bloom", "made-up", None])
    def test_an_unknown_one_is_an_error_that_names_it_and_the_known_ones(self, pre: str | None) -> None:
        with pytest.raises(UnknownPreTokenizer) as caught:
            build_tokenizer(byte_level_metadata(pre))
        assert (repr(pre) if pre else "no pre-tokenizer") in str(caught.value)
        assert "llama-bpe" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestByteLevel:
    def test_llama3_takes_a_word_that_is_a_token_without_merging(self) -> None:
        # "abc" cannot be reached: the merge of "b" and "c" comes first and there is none of "a" and "bc".
        merges = ("b c", "a b", "ab c")
        abc = 256 + merges.index("ab c")
        assert ids(build_tokenizer(byte_level_metadata("llama-bpe", merges)), "abc") == [abc]
        assert ids(build_tokenizer(byte_level_metadata("gpt-2", merges)), "abc") == [ord("a"), 256]

    @pytest.mark.parametrize("pre", ["dbrx", "smaug-bpe", "glm4"])
    def test_those_that_cut_alike_merge_every_word_and_add_no_bos(self, pre: str) -> None:
        merges = ("b c", "a b", "ab c")
        tokenizer = build_tokenizer(byte_level_metadata(pre, merges))
        assert ids(tokenizer, "abc", add_special_tokens=True) == [ord("a"), 256]

    def test_bos_and_eos_are_added_as_the_file_says(self) -> None:
        metadata = byte_level_metadata("gpt-2", add_bos_token=True, add_eos_token=True)
        assert ids(build_tokenizer(metadata), "a", add_special_tokens=True) == [256, 97, 257]
        assert ids(build_tokenizer(byte_level_metadata("gpt-2")), "a", add_special_tokens=True) == [97]

    @pytest.mark.parametrize(("fields", "expected"), [({}, [256, 97]), ({"add_bos_token": False}, [97])])
    def test_llama3_adds_bos_unless_told_not_to(self, fields: dict[str, Any], expected: list[int]) -> None:
        tokenizer = build_tokenizer(byte_level_metadata("llama-bpe", **fields))
        assert ids(tokenizer, "a", add_special_tokens=True) == expected

    def test_user_defined_tokens_are_whole_but_not_special(self) -> None:
        tokenizer = build_tokenizer(byte_level_metadata("gpt-2"))
        assert ids(tokenizer, "a<think>b") == [97, 258, 98]
        assert tokenizer.decode([97, 256, 258], skip_special_tokens=True) == "a<think>"


class TestSentencePiece:
    @given(text=st.text(SPM_CHARACTERS.replace("▁", " "), max_size=24))
    def test_merges_are_sentencepiece_s(self, sentencepiece: Tokenizer, text: str) -> None:
        assert [sentencepiece.id_to_token(token_id) for token_id in ids(sentencepiece, text)] == best_score_first(text)

    def test_characters_outside_the_vocabulary_become_bytes(self, sentencepiece: Tokenizer) -> None:
        tokens = sentencepiece.encode(" 🎉x", add_special_tokens=False).tokens
        assert tokens == ["▁▁", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>", "<0x78>"]

    @pytest.mark.parametrize("text", ["the world", " the", "你好 🎉\n\ttab", "e\u0301", "a  b   c", ""])
    def test_text_survives(self, sentencepiece: Tokenizer, text: str) -> None:
        assert sentencepiece.decode(ids(sentencepiece, text)) == text

    def test_bos_is_added_unless_told_not_to(self, sentencepiece: Tokenizer) -> None:
        assert ids(sentencepiece, "the", add_special_tokens=True)[0] == 1
        without = build_tokenizer(sentencepiece_metadata(add_bos_token=False))
        assert ids(without, "the", add_special_tokens=True) == ids(sentencepiece, "the")

    def test_the_leading_space_is_left_out_when_told(self) -> None:
        tokenizer = build_tokenizer(sentencepiece_metadata(add_space_prefix=False))
        assert tokenizer.encode("the the", add_special_tokens=False).tokens == ["t", "he", "▁the"]
        assert tokenizer.decode(ids(tokenizer, " the")) == " the"

    def test_a_run_of_spaces_declared_as_an_added_token_is_still_merged(self) -> None:
        metadata = sentencepiece_metadata(add_space_prefix=False)
        metadata["tokenizer.ggml.token_type"][metadata["tokenizer.ggml.tokens"].index("▁▁")] = 4
        tokenizer = build_tokenizer(metadata)
        assert tokenizer.encode("h  h", add_special_tokens=False).tokens == ["h", "▁▁", "h"]
        assert tokenizer.decode(ids(tokenizer, "h  h")) == "h  h"


def best_score_first(text: str) -> list[str]:
    """SentencePiece BPE as it is defined: join the pair whose result scores best, the leftmost of equals."""
    metadata = sentencepiece_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    score = dict(zip(tokens[259:], metadata["tokenizer.ggml.scores"][259:], strict=True))
    symbols = list(f" {text}".replace(" ", "▁")) if text else []
    while True:
        pairs = [(-score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in score]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", None])
def test_other_kinds_are_refused(kind: str | None) -> None:
    with pytest.raises(GGUFTokenizerError, match=repr(kind)):
        build_tokenizer({"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": ["a"]})


@pytest.mark.parametrize("field", ["tokens", "merges"])
def test_a_missing_field_is_named(field: str) -> None:
    metadata = byte_level_metadata("gpt-2")
    del metadata[f"tokenizer.ggml.{field}"]
    with pytest.raises(GGUFTokenizerError, match=field):
        build_tokenizer(metadata)


def test_fields_that_contradict_each_other_are_errors() -> None:
    with pytest.raises(GGUFTokenizerError, match="token types"):
        build_tokenizer(byte_level_metadata("gpt-2", token_type=[1]))
    with pytest.raises(GGUFTokenizerError, match="scores"):
        build_tokenizer(sentencepiece_metadata(scores=[0.0]))
    with pytest.raises(GGUFTokenizerError, match="merges"):
        build_tokenizer(byte_level_metadata("gpt-2") | {"tokenizer.ggml.merges": ["a zz"]})
    with pytest.raises(GGUFTokenizerError, match=r"bos_token_id = 9999 is not in the vocabulary"):
        build_tokenizer(byte_level_metadata("gpt-2", add_bos_token=True, bos_token_id=9999))
    with pytest.raises(GGUFTokenizerError, match=r"unknown_token_id = 0 is not in the vocabulary"):
        build_tokenizer(sentencepiece_metadata(tokens=[], scores=[], token_type=[]))


@pytest.mark.parametrize("merge", ["ab", "", " ", "a ", " ab"])
def test_a_merge_is_two_tokens_with_a_space_between(merge: str) -> None:
    with pytest.raises(GGUFTokenizerError, match=r"merge 1 is .*, not two tokens with a space between"):
        build_tokenizer(byte_level_metadata("gpt-2", ("a b",)) | {"tokenizer.ggml.merges": ["a b", merge]})


NONE = 2**32 - 1


@pytest.mark.parametrize("none", [NONE, -1])
def test_a_token_that_the_model_does_not_have_is_not_added(none: int) -> None:
    tokenizer = build_tokenizer(byte_level_metadata("llama-bpe", bos_token_id=none))
    assert tokenizer.encode("a").tokens == ["a"]
    unknown = build_tokenizer(sentencepiece_metadata(unknown_token_id=none))
    assert unknown.encode("the").ids == build_tokenizer(sentencepiece_metadata()).encode("the").ids


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_token_that_is_to_be_added_must_be_there(name: str) -> None:
    fields: dict[str, Any] = {f"{name}_token_id": NONE, f"add_{name}_token": True}
    with pytest.raises(GGUFTokenizerError, match=rf"has no tokenizer\.ggml\.{name}_token_id"):
        build_tokenizer(byte_level_metadata("gpt-2", (), **fields))


def test_merges_of_huge_pieces_are_not_looked_for() -> None:
    pieces = ["<unk>", *("a" * size for size in range(1, 2000))]
    with pytest.raises(GGUFTokenizerError, match="token 1999 is 1999 characters long"):
        build_tokenizer(sentencepiece_metadata(tokens=pieces, scores=[0.0] * len(pieces), token_type=None))
