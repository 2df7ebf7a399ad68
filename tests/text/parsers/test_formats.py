"""Parsers of tool calls: the same parts however the text is cut."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.parsers.format import Opened, Schemas, ThoughtFormat
from app.text.parsers.formats import TOOL_FORMATS, ReplyFormat
from app.text.parsers.reply import CallDelta, Content, Reasoning, ToolCall, WholePart, add_part
from app.text.parsers.thoughts import THOUGHTS
from tests.text.parsers.samples import ARGUMENTS, SAMPLES, TOOLS, Sample, call_format

THINK = next(each for each in THOUGHTS if each.name == "think")


def parts_of(
    name: str,
    pieces: Iterable[str],
    *,
    tools: Schemas = TOOLS,
    thought: ThoughtFormat | None = None,
    opened: Opened = Opened.NOT,
) -> list[WholePart]:
    """The parts of a reply that comes in pieces, with ids that tell nothing."""
    parser = ReplyFormat(call_format(name), thought).parser(tools, opened)
    whole: list[WholePart] = []
    for part in [*(part for piece in pieces for part in parser.push(piece)), *parser.flush()]:
        assert part != Content("")
        assert part != Reasoning("")
        add_part(whole, part)
    for each in whole:
        if isinstance(each, ToolCall):
            assert each.id
            each.id = ""
    return whole


def calls(parts: list[WholePart]) -> list[tuple[str, Any]]:
    return [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, ToolCall)]


def content(parts: list[WholePart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))


def test_every_format_has_a_sample() -> None:
    assert {sample.name for sample in SAMPLES} == set(TOOL_FORMATS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_two_calls_and_what_comes_before(sample: Sample) -> None:
    parts = parts_of(sample.name, [sample.before + sample.first + sample.second + sample.after])
    assert calls(parts) == [("get_weather", ARGUMENTS), ("now", {})]
    assert content(parts) == ("Let me look." if sample.before else "")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_each_character_by_itself(sample: Sample) -> None:
    text = sample.before + sample.first + sample.second + sample.after
    assert parts_of(sample.name, list(text)) == parts_of(sample.name, [text])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_cut_gives_the_same_parts(sample: Sample, data: st.DataObject) -> None:
    whole = "<think>" + "hm\n</think>\n\n" + sample.before + sample.first + sample.second + sample.after
    text = whole[: data.draw(st.integers(0, len(whole)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parts_of(sample.name, pieces, thought=THINK) == parts_of(sample.name, [text], thought=THINK)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_malformed_raises_nothing_and_depends_on_no_cut(sample: Sample, data: st.DataObject) -> None:
    whole = sample.before + sample.first + sample.second + sample.after
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    text = whole[:start] + data.draw(st.text(alphabet="<>{}[]\"\\ a\n|,:='", max_size=6)) + whole[end:]
    assert parts_of(sample.name, list(text)) == parts_of(sample.name, [text])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_call_of_no_known_tool_is_content(sample: Sample) -> None:
    parts = parts_of(sample.name, [sample.before + sample.first], tools={"other": {}})
    assert calls(parts) == []
    assert "Köln" in content(parts)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_arguments_that_are_cut_off_stay_as_they_are(sample: Sample) -> None:
    text = sample.before + sample.first
    cut = text[: text.index("2") + 1]
    (call,) = [part for part in parts_of(sample.name, [cut]) if isinstance(part, ToolCall)]
    assert call.name == "get_weather"
    assert call.arguments.startswith('{"city": "Köln')
    assert not call.arguments.endswith("}")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_reply_that_is_cut_in_its_marks_shows_none_of_them(sample: Sample) -> None:
    whole = sample.first + sample.second + sample.after
    for end in range(whole.index("2") + 1, len(whole)):
        parts = parts_of(sample.name, [whole[:end]])
        if isinstance(parts[0], ToolCall):
            assert content(parts) == "", whole[:end]


def test_arguments_come_as_they_are_written() -> None:
    parser = ReplyFormat(call_format("hermes"), None).parser(TOOLS, Opened.NOT)
    assert list(parser.push('<tool_call>\n{"name": "get_weather", "argu')) == [CallDelta(0, ANY, "get_weather")]
    assert list(parser.push('ments": {"ci')) == [CallDelta(0, arguments='{"ci')]
    assert list(parser.push('ty": "a"}')) == [CallDelta(0, arguments='ty": "a"}')]
    assert list(parser.push("}\n</tool_call>")) == []
    assert list(parser.flush()) == []


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"arguments": {"city": "a"}, "name": "get_weather"}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"a\\"}"}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"city": "a"}}}\n</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"city": "a"}}',
    ],
    ids=["name last", "JSON in a string", "a bracket too many", "no closing tag"],
)
def test_calls_that_are_written_oddly(text: str) -> None:
    assert calls(parts_of("hermes", [text])) == [("get_weather", {"city": "a"})]


def test_an_argument_that_is_null_is_no_argument() -> None:
    assert calls(parts_of("hermes", ['<tool_call>{"name": "now", "arguments": null}</tool_call>'])) == [("now", {})]


def test_white_space_without_a_call_is_content() -> None:
    assert content(parts_of("hermes", ["a \n", " b\n"])) == "a \n b\n"


def test_without_tools_nothing_is_a_call() -> None:
    form = ReplyFormat(call_format("hermes"), None)
    assert not form.tells({})
    assert parts_of("hermes", [SAMPLES[0].first], tools={}) == [Content(SAMPLES[0].first)]


@pytest.mark.parametrize("thought", THOUGHTS, ids=lambda thought: thought.name)
@pytest.mark.parametrize("opened", [Opened.NOT, Opened.YES])
def test_a_thought(thought: ThoughtFormat, opened: Opened) -> None:
    text = f"\nIs it <b?\n{thought.closing}\n\nYes."
    if opened is Opened.NOT:
        text = thought.opening + text
    parts = parts_of("hermes", list(text), tools={}, thought=thought, opened=opened)
    assert parts == [Reasoning("Is it <b?"), Content("Yes.")]


def test_a_thought_that_never_ends() -> None:
    assert parts_of("hermes", ["<think>\nWell", ", "], tools={}, thought=THINK) == [Reasoning("Well,")]


def test_the_word_for_a_thought_later_in_the_text_is_text() -> None:
    parts = parts_of("hermes", ["Write <think> and </think>."], tools={}, thought=THINK)
    assert parts == [Content("Write <think> and </think>.")]


def test_a_call_that_a_thought_mentions_is_none() -> None:
    parts = parts_of("hermes", ["<think>" + SAMPLES[0].first + "</think>No."], thought=THINK)
    assert parts == [Reasoning(SAMPLES[0].first), Content("No.")]


def test_harmony_tells_its_channels() -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello"
    assert parts_of("harmony", list(text), tools={}) == [Reasoning("Hm."), Content("Hello")]


def test_reasoning_is_told_while_it_comes() -> None:
    parser = ReplyFormat(call_format("hermes"), THINK).parser({}, Opened.NOT)
    told = []
    for piece in ("<think>", "a", "</think>", "b"):
        before = parser.in_reasoning
        parser.push(piece)
        told.append((before, parser.in_reasoning))
    assert told == [(False, True), (True, True), (True, False), (False, False)]
