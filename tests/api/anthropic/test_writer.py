"""Messages and streams of events, of replies of every kind, as Anthropic's own SDK reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import anthropic
import httpx2
import pytest

from app.api.anthropic.schemas.bodies import MessagesBody
from app.api.anthropic.writer import MessageWriter
from app.api.endpoint import AnswerHead
from app.contract.request import FinishReason
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta, Usage
from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart

QUESTION = {"role": "user", "content": "?"}
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


def body(**fields: Any) -> MessagesBody:
    return MessagesBody.model_validate({"max_tokens": 64, "messages": [QUESTION], **fields})


def writer(asked: MessagesBody) -> MessageWriter:
    head = AnswerHead(id="msg-abc", created=0, model="m", fingerprint="", prompts=[], tokenizer=cast("Any", None))
    return MessageWriter(head, asked)


def generation(*, cached: int = 0, fitted: int = 64) -> Generation:
    usage = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=cached, reasoning_tokens=2)
    request = SimpleNamespace(params=SimpleNamespace(max_tokens=fitted))
    return cast("Generation", SimpleNamespace(usage=usage, request=request))


def deltas(
    parts: Sequence[ReplyPart], finish: FinishReason = FinishReason.STOP, stop: str | int | None = None
) -> list[ChoiceDelta]:
    """One delta a part, the last of them the end."""
    made = [ChoiceDelta(index=0, text="", token_ids=[], parts=(part,)) for part in parts]
    return [*made, ChoiceDelta(index=0, text="", token_ids=[], finish_reason=finish, stop_reason=stop)]


def both(
    parts: Sequence[ReplyPart], asked: MessagesBody | None = None, *, made: Generation | None = None, **end: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole answer and the events of the stream."""
    asked = asked or body()
    generations = [made or generation()]
    completion = Completion(0)
    stream = writer(asked)
    frames: list[bytes] = []
    for delta in deltas(parts, **end):
        completion.add(delta)
        frames += stream.frames(0, delta, generations)
    frames += stream.end(generations)
    events = []
    for frame in frames:
        name, data = frame.decode().removesuffix("\n\n").split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    whole = writer(asked).whole([[completion]], generations)
    assert read_by_sdk(b"".join(frames)) == read_whole_by_sdk(whole)
    return json.loads(whole), events


def sdk(response: httpx2.Response) -> anthropic.Anthropic:
    transport = httpx2.MockTransport(lambda _request: response)
    return anthropic.Anthropic(api_key="none", max_retries=0, http_client=httpx2.Client(transport=transport))


def read_by_sdk(stream: bytes) -> dict[str, Any]:
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    with sdk(response).messages.stream(model="m", max_tokens=64, messages=cast("Any", [QUESTION])) as events:
        return cast("dict", events.get_final_message().model_dump(exclude={"content": {"__all__": {"parsed_output"}}}))


def read_whole_by_sdk(whole: bytes) -> dict[str, Any]:
    response = httpx2.Response(200, headers={"content-type": "application/json"}, content=whole)
    message = sdk(response).messages.create(model="m", max_tokens=64, messages=cast("Any", [QUESTION]))
    return cast("dict", message.model_dump())


def test_every_part_is_a_block() -> None:
    whole, events = both(ALL_KINDS)
    thought, text, first, second, third, last = whole["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "Let me see.")
    assert thought["signature"]
    assert text == {"type": "text", "text": "I look it up.", "citations": None}
    caller = {"type": "direct"}
    assert first == {
        "type": "tool_use",
        "id": "call_a",
        "name": "weather",
        "input": {"place": "Oslo"},
        "caller": caller,
    }
    assert second == {"type": "tool_use", "id": "call_b", "name": "now", "input": {}, "caller": caller}
    assert third["input"] == {"place": "Rome"}
    assert last["text"] == "Done."
    assert whole["stop_reason"] == "tool_use"
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == list(range(6))
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == list(range(6))
    deltas_of_first = [event["delta"] for event in events if event.get("index") == 2 and "delta" in event]
    assert [delta["partial_json"] for delta in deltas_of_first] == ['{"place": "Os', 'lo"}']
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None


def test_the_answer_says_who_and_how_much() -> None:
    whole, events = both([Content("Hi")], made=generation(cached=4))
    assert (whole["id"], whole["type"], whole["role"], whole["model"]) == ("msg_abc", "message", "assistant", "m")
    usage = whole["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (5, 4, 0)
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (5, {"thinking_tokens": 2})
    assert events[-2]["usage"] == usage


@pytest.mark.parametrize(
    ("parts", "end", "fitted", "reason", "sequence"),
    [
        ([Content("a")], {}, 64, "end_turn", None),
        ([Content("a")], {"finish": FinishReason.LENGTH}, 64, "max_tokens", None),
        ([Content("a")], {"finish": FinishReason.LENGTH}, 12, "model_context_window_exceeded", None),
        ([Content("a")], {"stop": "END"}, 64, "stop_sequence", "END"),
        ([], {}, 64, "end_turn", None),
        ([CallDelta(0, id="c", name="f", arguments="{}")], {}, 64, "tool_use", None),
        (
            [CallDelta(0, id="c", name="f", arguments='{"a": ["b", "c')],
            {"finish": FinishReason.LENGTH},
            64,
            "max_tokens",
            None,
        ),
    ],
)
def test_how_messages_end(
    parts: list[ReplyPart], end: dict[str, Any], fitted: int, reason: str, sequence: str | None
) -> None:
    whole, events = both(parts, made=generation(fitted=fitted), **end)
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert events[-2]["delta"]["stop_reason"] == reason


def test_a_call_that_was_cut_is_what_can_be_read_of_it() -> None:
    cut = [CallDelta(0, id="c", name="f", arguments='{"a": [1, 2], "b": "long te')]
    whole, _ = both(cut, finish=FinishReason.LENGTH)
    assert whole["content"][0]["input"] == {"a": [1, 2]}


def test_thoughts_may_be_left_out() -> None:
    thinking = {"type": "adaptive", "display": "omitted"}
    whole, events = both([Reasoning("Secret."), Content("Hi")], body(thinking=thinking))
    assert [block["type"] for block in whole["content"]] == ["thinking", "text"]
    assert "Secret" not in json.dumps([whole, events])


def test_what_shows_nothing_makes_no_event() -> None:
    silent = ChoiceDelta(index=0, text="", token_ids=[1])
    stream = writer(body())
    assert stream.frames(0, silent, [generation()]) == []
    shown = stream.frames(0, ChoiceDelta(index=0, text="a", token_ids=[2]), [generation()])
    assert [frame.split(b"\n")[0] for frame in shown] == [
        b"event: message_start",
        b"event: content_block_start",
        b"event: content_block_delta",
    ]
