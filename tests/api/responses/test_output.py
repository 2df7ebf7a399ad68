"""The parts of a reply as items and events, all kinds of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from app.api.responses.output import Output, tokens_of
from app.api.responses.schemas.answer import ItemStatus, ResponseEvent
from app.serving.types import TokenLogprob
from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart

PARTS: list[ReplyPart] = [
    Reasoning("Let me "),
    Reasoning("see."),
    Content("I look"),
    Content("."),
    CallDelta(0, "call_a", "look"),
    CallDelta(0, arguments='{"at":'),
    CallDelta(0, arguments='"it"}'),
    CallDelta(1, "call_b", "wait", "{}"),
]


def told(parts: list[ReplyPart], status: ItemStatus) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Events, as they were when they were emitted, and items at the end."""
    events: list[dict[str, Any]] = []

    def emit(event: ResponseEvent) -> None:
        events.append(msgspec.to_builtins(event))

    made = Output("resp_0a", emit)
    for part in parts:
        made.add(part)
    made.close(status)
    return events, msgspec.to_builtins(made.items)


def test_each_part_is_an_item_with_its_events() -> None:
    events, items = told(PARTS, "completed")
    short = [event["type"].removeprefix("response.") for event in events]
    text = ["output_item.added", "content_part.added", "{}.delta", "{}.delta", "{}.done", "content_part.done"]
    call = ["output_item.added", "function_call_arguments.delta"]
    call_done = ["function_call_arguments.done", "output_item.done"]
    assert short == [
        *(kind.format("reasoning_text") for kind in text),
        "output_item.done",
        *(kind.format("output_text") for kind in text),
        "output_item.done",
        *call,
        "function_call_arguments.delta",
        *call_done,
        *call,
        *call_done,
    ]
    assert items == [
        {
            "type": "reasoning",
            "id": "rs_0a_0",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Let me see."}],
            "status": "completed",
        },
        {
            "type": "message",
            "id": "msg_0a_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "id": "fc_0a_2",
            "call_id": "call_a",
            "name": "look",
            "arguments": '{"at":"it"}',
            "status": "completed",
        },
        {
            "type": "function_call",
            "id": "fc_0a_3",
            "call_id": "call_b",
            "name": "wait",
            "arguments": "{}",
            "status": "completed",
        },
    ]


def test_events_add_up_to_the_items() -> None:
    events, items = told(PARTS, "completed")
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == items
    assert [item["status"] for item in added] == ["in_progress"] * 4
    assert [item.get("content", item.get("arguments")) for item in added] == [[], [], "", ""]
    for place, item in enumerate(items):
        deltas = [event["delta"] for event in events if event.get("item_id") == item["id"] and "delta" in event]
        whole = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        assert "".join(deltas) == whole
        assert {event["output_index"] for event in events if event.get("item_id") == item["id"]} == {place}
        finals = [event for event in events if event.get("item_id") == item["id"] and event["type"].endswith(".done")]
        assert finals[0].get("text", finals[0].get("arguments")) == whole


@pytest.mark.parametrize("count", range(1, len(PARTS) + 1))
def test_a_cut_reply_leaves_its_last_item_incomplete(count: int) -> None:
    _, items = told(PARTS[:count], "incomplete")
    assert [item["status"] for item in items] == ["completed"] * (len(items) - 1) + ["incomplete"]


def test_what_is_empty_is_no_item() -> None:
    assert told([Content(""), Reasoning("")], "incomplete") == ([], [])


def token(text: str) -> TokenLogprob:
    return TokenLogprob(0, text, text.encode(), -1.0)


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("ab", ["a", "b"], "ab"),
        ("ab", ["a", "b", "</s>"], "ab"),
        ("answer", ["<think>", "hm", "</think>", "ans", "wer", "<|end|>"], ["ans", "wer"]),
        ("é", ["x", "é"], ["é"]),
        ("b", ["ab", "c"], ["ab"]),
        ("other", ["a", "b"], "ab"),
        ("a", [], []),
    ],
)
def test_tokens_of_a_piece_of_text(text: str, tokens: list[str], expected: list[str] | str) -> None:
    assert [each.text for each in tokens_of(text, [token(each) for each in tokens])] == list(expected)
