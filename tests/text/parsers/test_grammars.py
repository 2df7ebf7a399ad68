"""Grammars of replies: what they allow is what the parser reads, with arguments that are valid by their schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from app.errors import RequestError
from app.text.grammars.grammar import Grammar
from app.text.parsers.format import Opened, Schemas, Wanted
from app.text.parsers.formats import FORMATS, ReplyFormat
from app.text.parsers.reply import ToolCall, WholePart, add_part
from app.text.parsers.thoughts import THOUGHTS
from tests.text.parsers.samples import SAMPLES, TOOLS, WEATHER, Sample, call_format

THINK = next(each for each in THOUGHTS if each.name == "think")

ANSWER = Grammar('start: "yes" | "no"')


class Vocabulary:
    """Bytes, an end of text and markers: as control tokens, as one token each, or spelt.

    Args:
        control: markers that are control tokens.
        whole: markers that are one token of text.
    """

    eos_token_id = 256
    bos_token_id = None

    def __init__(self, control: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> None:
        self.markers = ["<eos>", *dict.fromkeys((*control, *whole))]
        self.tokens = [*(bytes([byte]) for byte in range(256)), *(marker.encode() for marker in self.markers)]
        self._control = {"<eos>", *control}
        self.special_token_ids = [256 + n for n, each in enumerate(self.markers) if each in self._control]
        self.control_ids = frozenset(self.special_token_ids)
        self.library = LLTokenizer(TokenizerWrapper(self))

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of text, control tokens aside."""
        data = text.encode() if isinstance(text, str) else text
        ids: list[int] = []
        while data:
            whole = (n for n in range(256, len(self.tokens)) if data.startswith(self.tokens[n]))
            ids.append(next((n for n in whole if n not in self.control_ids), data[0]))
            data = data[len(self.tokens[ids[-1]]) :]
        return ids

    def control_token_id(self, text: str) -> int | None:
        return 256 + self.markers.index(text) if text in self._control else None

    def token_id(self, text: str) -> int | None:
        return 256 + self.markers.index(text) if text in self.markers else None

    def encode(self, text: str) -> list[int]:
        """Markers that are tokens as those, all else as bytes."""
        ids: list[int] = []
        while text:
            marker = next((each for each in self.markers if text.startswith(each)), "")
            ids += [256 + self.markers.index(marker)] if marker else list(text[0].encode())
            text = text[len(marker) or 1 :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.tokens[each] for each in ids).decode(errors="replace")


class Walk:
    """A reply that follows a grammar."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.matcher = LLMatcher(vocabulary.library, grammar.source())
        assert not self.matcher.is_error(), self.matcher.get_error()
        self.ids: list[int] = []

    def allowed(self) -> list[int]:
        mask = self.matcher.compute_bitmask()
        return [each for each in range(len(self.vocabulary.tokens)) if mask[each // 8] >> (each % 8) & 1]

    def take(self, text: str) -> bool:
        """Goes along a text; whether the grammar lets it."""
        for token_id in self.vocabulary.encode(text):
            if token_id not in self.allowed():
                return False
            self.ids.append(token_id)
            assert self.matcher.consume_token(token_id), self.matcher.get_error()
        return True

    @property
    def may_end(self) -> bool:
        return self.matcher.is_accepting()

    def wander(self, seed: int, most: int = 700) -> str:
        """Goes on by chance, mostly towards an end, as far as that."""
        chance = random.Random(seed)
        for _ in range(most):
            allowed = self.allowed()
            assert allowed, self.matcher.get_error()
            if 256 in allowed and chance.random() < 0.5:
                break
            likely = [each for each in allowed if each != 256 and (each > 256 or chr(each) in _LIKELY)]
            choice = chance.choice(likely or [each for each in allowed if each != 256] or [256])
            if choice == 256:
                break
            self.ids.append(choice)
            assert self.matcher.consume_token(choice), self.matcher.get_error()
        return self.vocabulary.decode(self.ids)


_LIKELY = "abcdkelvin<>/_={}[]\"'|: ,.0123\n"


def parse(form: ReplyFormat, text: str, tools: Schemas, opened: Opened = Opened.NOT) -> list[WholePart]:
    parser = form.parser(tools, opened)
    whole: list[WholePart] = []
    for part in [*parser.push(text), *parser.flush()]:
        add_part(whole, part)
    return whole


def checked_calls(parts: list[WholePart], tools: Schemas) -> list[str]:
    """Names of the calls, whose arguments are valid."""
    found = [part for part in parts if isinstance(part, ToolCall)]
    for call in found:
        jsonschema.validate(json.loads(call.arguments), dict(tools[call.name]))
    return [call.name for call in found]


def vocabularies(sample: Sample) -> list[Vocabulary]:
    """Markers as control tokens; and as text where the format may be spelt."""
    control = call_format(sample.name).control
    spelt = [] if sample.name in ("harmony", "gemma4") else [Vocabulary()]
    return [Vocabulary(control), *spelt]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_grammar_takes_the_replies_that_models_were_trained_on(sample: Sample) -> None:
    form = ReplyFormat(call_format(sample.name), None)
    first = sample.first.replace("'", '"').replace('Köln "am" Rhein', "Köln").replace('Köln \\"am\\" Rhein', "Köln")
    for vocabulary in vocabularies(sample):
        grammar = form.grammar(Wanted(tools=TOOLS), vocabulary)
        assert grammar is not None
        walk = Walk(grammar, vocabulary)
        ending = {"mistral-array": "]", "lfm2": "]<|tool_call_end|>", "pythonic": "]", "harmony": ""}.get(
            sample.name, ""
        )
        reply = (sample.before + first).removesuffix("<|call|>") + ending
        if sample.name.startswith("deepseek"):
            reply += "<｜tool▁calls▁end｜>"
        assert walk.take(reply), walk.vocabulary.decode(walk.ids)
        assert walk.may_end


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_words_alone_may_answer_where_no_call_is_required(sample: Sample) -> None:
    form = ReplyFormat(call_format(sample.name), None)
    for vocabulary in vocabularies(sample):
        grammar = form.grammar(Wanted(tools=TOOLS), vocabulary)
        assert grammar is not None
        walk = Walk(grammar, vocabulary)
        words = 'It is {"cold"} <b> [today].'
        assert walk.take(f"<|channel|>final<|message|>{words}" if sample.name == "harmony" else words)
        assert walk.may_end
        required = form.grammar(Wanted(tools=TOOLS, required=True), vocabulary)
        assert required is not None
        assert not Walk(required, vocabulary).take("It")
        assert not Walk(required, vocabulary).may_end


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_whatever_a_grammar_allows_is_a_valid_call(sample: Sample, parallel: bool) -> None:
    form = ReplyFormat(call_format(sample.name), None)
    for vocabulary in vocabularies(sample):
        grammar = form.grammar(Wanted(tools=TOOLS, required=True, parallel=parallel), vocabulary)
        assert grammar is not None
        ended = 0
        for seed in range(12):
            walk = Walk(grammar, vocabulary)
            text = walk.wander(seed)
            if walk.may_end:
                ended += 1
                names = checked_calls(parse(form, text, TOOLS), TOOLS)
                assert names, text
                assert parallel or len(names) == 1
        assert ended


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_what_follows_the_trigger_is_a_call(sample: Sample) -> None:
    form = ReplyFormat(call_format(sample.name), None)
    trigger = form.calls.trigger
    if not trigger:
        pytest.skip("calls have no trigger")
    for vocabulary in vocabularies(sample):
        grammar = form.grammar(Wanted(tools=TOOLS), vocabulary)
        assert grammar is not None
        walk = Walk(grammar, vocabulary)
        assert walk.take(f"Well.\n{trigger}")
        text = walk.wander(3)
        assert not walk.may_end or checked_calls(parse(form, text, TOOLS), TOOLS)
        other = Walk(grammar, vocabulary)
        assert other.take(f"Well.\n{trigger}")
        assert not other.take("\n\n\nno such thing")


def _reply(budget: int | None, opened: Opened, **wanted: Any) -> Callable[[Vocabulary], Walk]:
    def walk(vocabulary: Vocabulary) -> Walk:
        form = ReplyFormat(call_format("hermes"), THINK)
        grammar = form.grammar(Wanted(opened=opened, budget=budget, **wanted), vocabulary)
        assert grammar is not None
        return Walk(grammar, vocabulary)

    return walk


THINKING = [
    Vocabulary(),
    Vocabulary(whole=THINK.control),
    Vocabulary(control=THINK.control),
]


@pytest.mark.parametrize("vocabulary", THINKING, ids=["spelt", "whole", "control"])
class TestThought:
    """The schema binds the answer, not the thought; a budget closes the thought."""

    def test_the_answer_is_bound_behind_a_thought(self, vocabulary: Vocabulary) -> None:
        walk = _reply(None, Opened.NOT, form=ANSWER)(vocabulary)
        assert walk.take("<think>\nmaybe? <tool_call> </thin\n</think>\n\nyes")
        assert walk.may_end
        assert not _reply(None, Opened.NOT, form=ANSWER)(vocabulary).take("<think>a</think>\n\nmaybe")
        assert _reply(None, Opened.NOT, form=ANSWER)(vocabulary).take("no")
        assert not _reply(None, Opened.NOT, form=ANSWER)(vocabulary).take("maybe")

    def test_white_space_before_a_thought(self, vocabulary: Vocabulary) -> None:
        for wanted in ({"form": ANSWER}, {"tools": TOOLS}):
            walk = _reply(None, Opened.NOT, **wanted)(vocabulary)
            assert walk.take("\n<think>\nHm.</think>\nyes")
            assert walk.may_end

    def test_a_thought_that_the_prompt_began(self, vocabulary: Vocabulary) -> None:
        walk = _reply(None, Opened.YES, form=ANSWER)(vocabulary)
        assert walk.take("maybe")
        assert not walk.may_end
        assert walk.take("</think>\n\nno")
        assert walk.may_end

    def test_a_thought_that_the_prompt_closed(self, vocabulary: Vocabulary) -> None:
        assert not _reply(None, Opened.OVER, form=ANSWER)(vocabulary).take("maybe")
        assert _reply(None, Opened.OVER, form=ANSWER)(vocabulary).take("no")

    def test_calls_behind_a_thought(self, vocabulary: Vocabulary) -> None:
        walk = _reply(None, Opened.NOT, tools=TOOLS, required=True)(vocabulary)
        assert walk.take('<think>a</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
        assert walk.may_end
        assert _reply(None, Opened.NOT, tools=TOOLS, required=True)(vocabulary).take("<tool_call>")

    @pytest.mark.parametrize("opened", [Opened.NOT, Opened.YES])
    def test_a_budget_closes_the_thought(self, vocabulary: Vocabulary, opened: Opened) -> None:
        walk = _reply(8, opened)(vocabulary)
        beginning = "" if opened is Opened.YES else "<think>"
        spelt = vocabulary.token_id("</think>") is None
        assert walk.take(beginning + ("a" * 32 if spelt else "a" * 8))
        assert not walk.take("a")
        assert walk.take("</think>Go on.")
        assert walk.may_end

    def test_a_thought_within_its_budget(self, vocabulary: Vocabulary) -> None:
        walk = _reply(8, Opened.YES, form=ANSWER)(vocabulary)
        assert walk.take("aaa</think>yes")
        assert walk.may_end

    def test_no_budget_is_no_thought(self, vocabulary: Vocabulary) -> None:
        walk = _reply(0, Opened.YES, form=ANSWER)(vocabulary)
        assert not walk.take("a")
        assert walk.take("</think>\n\nyes")
        assert not _reply(0, Opened.NOT)(vocabulary).take("<think>")


def test_white_space_before_a_call_without_a_trigger() -> None:
    form = ReplyFormat(call_format("llama3"), THINK)
    for text in ('{"name": "now", "parameters": {}}', '\n\n{"name": "now", "parameters": {}}', "\nWords {"):
        grammar = form.grammar(Wanted(tools=TOOLS), Vocabulary())
        assert grammar is not None
        for beginning in ("", "<think>Hm.</think>"):
            walk = Walk(grammar, Vocabulary())
            assert walk.take(beginning + text)
            assert walk.may_end
        assert not Walk(grammar, Vocabulary()).take('\n{"name": "never')


def test_harmony_binds_its_answer_and_closes_its_thought() -> None:
    form = ReplyFormat(call_format("harmony"), None)
    vocabulary = Vocabulary(control=form.calls.control)
    grammar = form.grammar(Wanted(tools=TOOLS, form=ANSWER, budget=4), vocabulary)
    assert grammar is not None
    walk = Walk(grammar, vocabulary)
    assert walk.take("<|channel|>analysis<|message|>abcd")
    assert not walk.take("e")
    assert walk.take("<|end|><|start|>assistant<|channel|>final<|message|>yes")
    assert walk.may_end


def test_nothing_wanted_binds_nothing() -> None:
    for form in (ReplyFormat(each, None) for each in FORMATS):
        assert form.grammar(Wanted(), Vocabulary()) is None
        assert form.thinks or form.grammar(Wanted(form=ANSWER), Vocabulary()) is ANSWER


def test_a_named_tool_is_the_one_that_is_called() -> None:
    form = ReplyFormat(call_format("hermes"), None)
    grammar = form.grammar(Wanted(tools={"get_weather": WEATHER}, required=True), Vocabulary())
    assert grammar is not None
    assert not Walk(grammar, Vocabulary()).take('<tool_call>{"name": "now"')


ODD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "size": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        "word": {"type": "string", "minLength": 2, "maxLength": 4},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
        "level": {"enum": [1, 2.5, None, "a"]},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["size", "word", "maybe", "either", "level", "place"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "name": {"type": "string"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("name", ["hermes", "qwen-coder", "glm", "lfm2", "gemma4", "function-gemma"])
def test_schemas_of_many_kinds(name: str) -> None:
    form = ReplyFormat(call_format(name), None)
    tools = {"odd": ODD}
    vocabulary = Vocabulary(form.calls.control, whole=("</parameter>",))  # which chance would hardly spell
    grammar = form.grammar(Wanted(tools=tools, required=True, parallel=False), vocabulary)
    assert grammar is not None
    ended = 0
    for seed in range(6):
        walk = Walk(grammar, vocabulary)
        text = walk.wander(seed)
        if walk.may_end:
            ended += 1
            assert checked_calls(parse(form, text, tools), tools) == ["odd"], text
    assert ended


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("glm", {"anyOf": [{"type": "object"}]}),
        ("qwen-coder", {"type": "object", "minProperties": 1}),
        ("gemma4", {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a$"}}}),
        ("lfm2", {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}),
        ("glm", {"type": "object", "properties": {"a b": {}}}),
    ],
)
def test_what_a_format_cannot_be_held_to_is_refused(name: str, schema: dict[str, Any]) -> None:
    form = ReplyFormat(call_format(name), None)
    with pytest.raises(RequestError) as error:
        form.grammar(Wanted(tools={"odd": schema}), Vocabulary(form.calls.control))
    assert error.value.status == 400
    assert "odd" in (error.value.param or "")
