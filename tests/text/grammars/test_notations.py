"""Notations besides JSON Schema: what their grammars allow, and what is refused."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from app.errors import RequestError
from app.text.grammars.choice import MAX_CHOICES, choice
from app.text.grammars.gbnf import gbnf
from app.text.grammars.json_object import json_object
from app.text.grammars.lark import ebnf, lark
from app.text.grammars.regex import regex
from app.text.grammars.structural_tag import structural_tag
from app.text.grammars.whitespace import whitespace_pattern
from tests.text.grammars.matching import allows, begins, sample

JSON_GBNF = r"""
root   ::= object   # a comment
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4})
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
TAG: dict[str, Any] = {
    "triggers": ["<function="],
    "structures": [
        {"begin": "<function=add>", "schema": {"type": "integer"}, "end": "</function>"},
        {"begin": "<function=say>", "schema": {"type": "string"}, "end": "</function>"},
    ],
}


def refusal(read: Any, *given: Any) -> RequestError:
    with pytest.raises(RequestError) as refused:
        read(*given, param="field")
    assert refused.value.status == 400
    assert refused.value.param is not None
    assert refused.value.param.startswith("field")
    return refused.value


def test_any_json_object() -> None:
    made = json_object()
    for text in ("{}", '{"a": {"b": [1, null, "x"]}}'):
        assert allows(made, text)
    for text in ("[]", "1", '"a"', "{} ", '{"a":' + "1" * 40):
        assert not begins(made, text)


@pytest.mark.parametrize(
    ("pattern", "valid", "invalid"),
    [
        (r"\d{3}-\d{4}", ["555-1234"], ["555-12345", "x555-1234"]),
        (r"^yes$|^no$", ["yes", "no"], ["yesno"]),
        (r"[^\]\[]+/x", ["ab/x"], ["[/x"]),
        (r"(?P<a>x|y)+?\.", ["xy."], ["xyz"]),
        (r"(?i)yes", ["YES", "yeS"], ["no"]),
        (r"\s?[\d\s]", [" 1", "1", "  "], ["a"]),
        (r"\u00e9\x41\u{1F600}", ["éA😀"], ["e"]),
        ("a\nb\t/", ["a\nb\t/"], ["ab"]),
        (r"[[:alpha:]]{2}", ["ab"], ["a1"]),
        (r"{a}", ["{a}"], ["a"]),
        (r"\Aa.c\Z", ["abc"], ["a\nc"]),
        ("", [""], ["a"]),
    ],
)
def test_expressions_match_the_whole_text(pattern: str, valid: list[str], invalid: list[str]) -> None:
    made = regex(pattern, param="field")
    assert [text for text in valid if not allows(made, text)] == []
    assert [text for text in invalid if allows(made, text)] == []


@pytest.mark.parametrize(
    "pattern", [r"(?=a)b", r"(?<!a)b", r"(a)\1", r"\bword", "a^b", "(", ")", "[a", "[]a]", "a\\", r"\uD800", "a" * 9000]
)
def test_expressions_that_cannot_be_honoured_are_refused(pattern: str) -> None:
    refusal(regex, pattern)


def test_random_texts_match_as_python_matches_them() -> None:
    chance = random.Random(3)
    for pattern in (
        r"[a-c]+(?:-\d{1,2})?",
        r"(?:\w{2}[.]){1,3}",
        r"[^\s@]+@[a-z]+\.(?:com|org)",
        r"-?(0|[1-9]\d{0,4})(\.\d+)?",
    ):
        made = regex(pattern, param="field")
        for _ in range(20):
            if (text := sample(made, chance, 300)) is not None:
                assert re.fullmatch(pattern, text)


def test_choices_are_taken_as_they_are() -> None:
    texts = ["a", "ab", 'say "hi"\n', "é😀", "\\d", "/x/ | y", "\u0001"]
    made = choice(texts, param="field")
    assert all(allows(made, text) for text in texts)
    assert not any(allows(made, text) for text in ("abc", "", "b", "1"))
    refusal(choice, [])
    refusal(choice, ["\ud800"])
    refusal(choice, [str(index) for index in range(MAX_CHOICES + 1)])


@pytest.mark.parametrize(
    ("text", "valid", "invalid"),
    [
        (JSON_GBNF, ['{"a": [1, 2.5,\n  "x\\n"], "b": null}', "{}"], ["[]", '{"a"}']),
        ('root ::= "1. " [^\\n]+ "\\n" [a-c-]{2}', ["1. abc\na-"], ["1. \nab", "1. x\nd-"]),
        (
            'root ::= (expr "=" num "\\n")+\nexpr ::= num ([-+*/] num)* | "(" expr ")"\nnum ::= [0-9]+',
            ["(1+2)=3\n"],
            ["=\n"],
        ),
        ("root ::= [\\x41\\u00e9\\U0001F600]? .", ["é\n", "A", "😀x"], ["abc"]),
        ('root ::= |\n  "a" |\n  "b"', ["", "a", "b"], ["ab"]),
        ('root ::= thing-1 "x"\nthing-1 ::= "a"{2,}', ["aax", "aaax"], ["ax"]),
        ('root ::= "\\x00" ["\\\\]', ["\0\\", '\0"'], ["\\"]),
    ],
)
def test_gbnf(text: str, valid: list[str], invalid: list[str]) -> None:
    made = gbnf(text, param="field")
    assert [each for each in valid if not allows(made, each)] == []
    assert [each for each in invalid if allows(made, each)] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('r ::= "a"', "no rule root"),
        ('root ::= "a" x', "needs x"),
        ('root ::= "a', "line 1: a text has no end"),
        ('root ::= "a"\nroot ::= "b"', "line 2: rule root is there twice"),
        ('root ::= ("a"', "a group has no end"),
        ('root ::= "a" )', "belongs to no rule"),
        ("root ::= [b-a]", "a range of characters"),
        ("root ::= []", "a class is empty"),
        ('root ::= "\\q"', "is no escape"),
        ('root ::= "a"{3,1}', "numbers of repetitions"),
        ("root ::= <think>", "a token is not supported"),
        ('root ::= (="a") "a"', "a look at what follows is not supported"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "nested more than"),
        ("root ::= " + " ".join(f"r{index}" for index in range(20_000)), "more than"),
    ],
)
def test_gbnf_that_cannot_be_honoured_is_refused(text: str, says: str) -> None:
    assert says in refusal(gbnf, text).message


def test_lark() -> None:
    made = lark('start: "a" ITEM+ %json {"type": "null"}\nITEM: /[0-9]/ ","', param="field")
    assert allows(made, "a1,2,null")
    assert not allows(made, "a1,2,")
    for text in (
        'begin: "a"',
        'start: x\nx[stop="b"]: /.*/',
        "start: x\nx[max_tokens=3]: /.*/",
        "start: " + '"a" ' * 20_000,
    ):
        refusal(lark, text)


def test_a_grammar_is_read_in_the_notation_that_it_is_in() -> None:
    assert allows(ebnf('root ::= "a"', param="field"), "a")
    assert allows(ebnf('start: "root ::= "', param="field"), "root ::= ")
    refusal(ebnf, "neither")


def test_structural_tags_bind_what_is_within_them() -> None:
    made = structural_tag(TAG, param="field")
    for text in ("free", 'so: <function=add>1</function> and <function=say>"x"</function>', "a < b <functio"):
        assert allows(made, text)
    for text in ("<function=no", "<function=add>x", "<function=say>1"):
        assert not begins(made, text)
    assert not allows(made, "<function=add>1")


def test_structural_tags_in_the_newer_form() -> None:
    elements = [
        {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"},
        {"type": "or", "elements": [{"type": "const_string", "value": "yes"}, {"type": "regex", "pattern": "[0-9]+"}]},
        {"type": "grammar", "grammar": 'root ::= "!" | "?"'},
    ]
    made = structural_tag(
        {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}, param="field"
    )
    assert allows(made, "<think>a\nb</think>yes!")
    assert allows(made, "<think></think>12?")
    assert not begins(made, "<think>a</think>no")
    call = {"begin": "<f>", "content": {"type": "json_schema", "json_schema": {"type": "null"}}, "end": "</f>"}
    once = {"type": "triggered_tags", "triggers": ["<f"], "tags": [call], "stop_after_first": True}
    assert allows(structural_tag({"format": once}, param="field"), "so <f>null</f>")
    assert not allows(structural_tag({"format": once}, param="field"), "so")
    least = structural_tag({"format": once | {"stop_after_first": False, "at_least_one": True}}, param="field")
    assert allows(least, "<f>null</f> x <f>null</f> y")
    assert not allows(least, "x")


@pytest.mark.parametrize(
    ("tag", "param"),
    [
        ({"structures": [], "triggers": ["<"]}, "field.structures"),
        (TAG | {"triggers": []}, "field.triggers"),
        (TAG | {"triggers": ["<tool"]}, "field.tags.0.begin"),
        ({"format": {"type": "qwen_xml"}}, "field.format.type"),
        ({"format": {"type": "json_schema", "json_schema": {"not": {}}}}, "field.format.json_schema/not"),
        ({"format": {"type": "regex"}}, "field.format.pattern"),
    ],
)
def test_structural_tags_that_cannot_be_honoured_are_refused(tag: dict[str, Any], param: str) -> None:
    assert refusal(structural_tag, tag).param == param


def test_whitespace_that_a_client_chooses_is_whitespace() -> None:
    assert whitespace_pattern(r"[ \n]{0,4}", param="field") == r"[ \n]{0,4}"
    assert whitespace_pattern(r"\s?", param="field") == r"[ \t\n\r]?"
    for pattern in ("x", r"\w", ".*", "[ a]", " " * 300):
        refusal(whitespace_pattern, pattern)
