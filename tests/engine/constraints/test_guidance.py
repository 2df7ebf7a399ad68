"""Grammars over a vocabulary: masks, limits, and how forced text is spelled."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.contract.constraints import PARSER_LIMITS
from app.contract.frames import Vocabulary
from app.engine.constraints.base import ConstraintError, TokenConstraint
from app.engine.constraints.compiler import GrammarCache
from app.engine.constraints.guidance import GuidanceCompiler
from app.engine.constraints.spelling import CanonicalSpelling
from tests.engine.constraints.rig import EOS, IM_END, VOCAB_SIZE, byte_vocabulary, lark


def compiler(eos: tuple[int, ...] = (EOS, IM_END), vocab_size: int = VOCAB_SIZE) -> GuidanceCompiler:
    return GuidanceCompiler(byte_vocabulary(), vocab_size, eos)


def allowed(constraint: TokenConstraint, vocab_size: int = VOCAB_SIZE) -> set[int]:
    """Tokens that may come next, those included that the logits do not have."""
    words = np.full(-(-vocab_size // 32), 0xFFFFFFFF, dtype=np.uint32)
    constraint.fill(words)
    return {token_id for token_id in range(32 * len(words)) if words[token_id // 32] >> token_id % 32 & 1}


def follow(constraint: TokenConstraint, text: bytes) -> None:
    """A mask and a token in turns."""
    for value in text:
        allowed(constraint)
        constraint.advance([value])


def test_a_mask_has_what_may_come_and_no_bits_beyond_the_logits() -> None:
    constraint = compiler().compile(lark("start: /[a-c]{1,2}/")).begin()
    assert allowed(constraint) == set(b"abc")
    constraint.advance(b"b")
    assert allowed(constraint) == {*b"abc", EOS, IM_END}
    assert constraint.may_end
    assert not constraint.is_complete
    constraint.advance(b"c")
    assert constraint.is_complete


def test_each_sequence_has_a_place_of_its_own() -> None:
    grammar = compiler().compile(lark("start: /ab*c/"))
    first, second = grammar.begin(), grammar.begin()
    first.advance(b"abb")
    assert allowed(first) == set(b"bc")
    assert allowed(second) == set(b"a")
    assert first.forced() == []
    assert second.forced() == [ord("a")]


def test_a_model_without_eos_ends_where_the_grammar_does() -> None:
    constraint = compiler(eos=(), vocab_size=256).compile(lark("start: /a{0,2}/")).begin()
    assert allowed(constraint, 256) == set(b"a")
    constraint.advance(b"aa")
    assert constraint.is_complete


def test_logits_may_be_narrower_than_the_tokenizer() -> None:
    constraint = compiler(eos=(), vocab_size=100).compile(lark("start: /[a-z]/")).begin()
    assert allowed(constraint, 100) == set(b"abc")


def test_a_token_that_may_not_come_ends_it_for_good() -> None:
    constraint = compiler().compile(lark("start: /[a-c]+/")).begin()
    for _ in range(2):
        with pytest.raises(ConstraintError):
            constraint.advance(b"z")
    with pytest.raises(ConstraintError):
        allowed(constraint)
    with pytest.raises(ConstraintError):
        constraint.forced()
    assert not constraint.is_complete


def test_an_ambiguous_grammar_gets_its_share_and_no_more() -> None:
    constraint = compiler().compile(lark('start: e\ne: e e | "a" | e e e | "b"')).begin()
    with pytest.raises(ConstraintError, match="too long to follow"):
        follow(constraint, b"a" * 20_000)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: %json {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}',
        "start: /(a{1000}){1000}/",
        "start: /" + "(" * 3000 + "a" + ")" * 3000 + "/",
    ],
    ids=["cyclic", "repeated", "deep"],
)
def test_hostile_grammars_are_refused(grammar: str) -> None:
    with pytest.raises(ConstraintError, match="the grammar does not compile"):
        compiler().compile(lark(grammar))


def test_a_grammar_whose_lexer_is_full_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARSER_LIMITS, "max_lexer_states", 100)
    grammar = compiler().compile(lark("start: /[ab]*a[ab]{9}c/"))
    cache = GrammarCache()
    cache.put("source", grammar)
    assert cache.get("source") is grammar
    constraint = grammar.begin()
    with pytest.raises(ConstraintError, match="cannot be followed further"):
        follow(constraint, bytes(random.Random(1).choices(b"ab", k=5000)))
    assert cache.get("source") is None


def test_the_cache_is_bounded() -> None:
    made = compiler()
    cache = GrammarCache(5 << 20)
    for index in range(8):
        cache.put(str(index), made.compile(lark(f'start: "{index}"')))
        cache.get("0")
    kept = [index for index in range(8) if cache.get(str(index)) is not None]
    assert kept == [0, 5, 6, 7]


def sentencepiece_vocabulary() -> Vocabulary:
    """A tokenizer that puts a space before a text, and spells some words as one token."""
    pieces = ["▁", "▁say", "say", "s", "a", "y", "\x02", "▁\x02", "<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [("s", "a")][:0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    data = [piece.replace("▁", " ").encode() for piece in pieces[:8]] + [b"\xe2", b"\x82", b"\xac"]
    return Vocabulary(token_bytes=data, control_tokens={}, definition=tokenizer.to_str())


def test_text_is_spelled_without_a_space_that_is_not_there() -> None:
    spell = CanonicalSpelling(sentencepiece_vocabulary(), 11)
    assert spell(b"say") == [3, 4, 5]
    assert spell(b" a") == [0, 4]


def test_what_the_tokenizer_cannot_spell_is_spelled_by_the_longest_tokens() -> None:
    spell = CanonicalSpelling(sentencepiece_vocabulary(), 11)
    assert spell("€".encode()) == [8, 9, 10]
    assert spell(b"\xe2\x82") == [8, 9]
    assert spell(b"say\xe2") == [2, 8]
    assert spell(b"s!a") == [3]


def test_control_tokens_are_never_spelled() -> None:
    assert CanonicalSpelling(byte_vocabulary(), VOCAB_SIZE)(b"<|im_end|>") == list(b"<|im_end|>")


def test_tokens_beyond_the_logits_are_never_spelled() -> None:
    vocabulary = byte_vocabulary()
    longer = msgspec.structs.replace(vocabulary, token_bytes=vocabulary.token_bytes)
    assert CanonicalSpelling(longer, ord("b"))(b"ab") == [ord("a")]
