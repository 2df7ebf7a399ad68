"""Replies of every kind as Ollama's client reads them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import ollama
import pytest

from app.api.endpoint import AnswerHead
from app.api.ollama.writer import ChatWriter, GenerateWriter, OllamaWriter
from app.contract.request import FinishReason
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta, Usage
from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart

ALL_KINDS: list[ReplyPart] = [
    Reasoning("Let me "),
    Reasoning("see."),
    Content("I look "),
    Content("it up."),
    CallDelta(0, id="call_a", name="weather"),
    CallDelta(0, arguments='{"place": "Os'),
    CallDelta(0, arguments='lo"}'),
    CallDelta(1, id="call_b", name="now"),
    CallDelta(2, id="call_c", name="weather", arguments='{"place":"Rome"}'),
    Content("Done."),
]
PLACES = [{"place": "Oslo"}, {}, {"place": "Rome"}]


def both(
    kind: type[OllamaWriter], parts: list[ReplyPart], finish: FinishReason = FinishReason.STOP
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole answer and the lines of the stream."""
    usage = Usage(prompt_tokens=9, completion_tokens=5)
    generations = [cast("Generation", SimpleNamespace(usage=usage, timings=None, ended=True))]
    head = AnswerHead(id="x", created=0, model="m", fingerprint="", prompts=[], tokenizer=cast("Any", None))
    stream, completion = kind(head), Completion(0)
    frames: list[bytes] = []
    for place, part in enumerate(parts, start=1):
        ends = finish if place == len(parts) else None
        delta = ChoiceDelta(index=0, text="", token_ids=[], parts=(part,), finish_reason=ends)
        completion.add(delta)
        frames += stream.frames(0, delta, generations)
    frames += stream.end(generations)
    assert all(frame.endswith(b"\n") and frame.count(b"\n") == 1 for frame in frames)
    whole = kind(head).whole([[completion]], generations)
    return json.loads(whole), [json.loads(frame) for frame in frames]


def test_calls_come_whole_and_in_order() -> None:
    whole, streamed = both(ChatWriter, ALL_KINDS)
    answer = ollama.ChatResponse(**whole)
    assert (answer.message.thinking, answer.message.content) == ("Let me see.", "I look it up.Done.")
    assert [call.function.arguments for call in answer.message.tool_calls or []] == PLACES
    pieces = [ollama.ChatResponse(**line).message for line in streamed]
    assert "".join(piece.thinking or "" for piece in pieces) == answer.message.thinking
    assert "".join(piece.content or "" for piece in pieces) == answer.message.content
    calls = [call for piece in pieces for call in piece.tool_calls or []]
    assert calls == answer.message.tool_calls
    assert [call["function"]["index"] for call in whole["message"]["tool_calls"]] == [0, 1, 2]
    assert (whole["done_reason"], streamed[-1]["done_reason"]) == ("stop", "stop")


@pytest.mark.parametrize(
    ("arguments", "read"), [('{"a": [1, 2], "b": "lo', {"a": [1, 2]}), ("", {}), ('{"a"', {}), ("nonsense", {})]
)
def test_a_call_that_was_cut_is_what_can_be_read_of_it(arguments: str, read: dict[str, Any]) -> None:
    whole, streamed = both(ChatWriter, [CallDelta(0, id="c", name="f", arguments=arguments)], FinishReason.LENGTH)
    (call,) = whole["message"]["tool_calls"]
    assert call == {"id": "c", "function": {"index": 0, "name": "f", "arguments": read}}
    assert streamed[0]["message"]["tool_calls"] == [call]
    assert streamed[-1]["done_reason"] == "length"


def test_thought_has_a_field_of_its_own() -> None:
    whole, streamed = both(GenerateWriter, [Reasoning("Hm."), Content("Hi")])
    assert (whole["thinking"], whole["response"]) == ("Hm.", "Hi")
    assert [(line.get("thinking"), line["response"]) for line in streamed] == [("Hm.", ""), (None, "Hi"), (None, "")]
