"""Items as a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from app.api.responses.items import kept_item, messages_of, response_of, token_of, unknown_fields, user_item, with_ids
from app.api.responses.schemas.items import Items

RESPONSE = "resp_0a"


def messages(items: list[dict[str, Any]], instructions: str | None = None) -> list[dict[str, Any]]:
    read = TypeAdapter(Items).validate_python(items)
    return messages_of([kept_item(item) for item in read], instructions)


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "look", "arguments": arguments}


def as_tool_call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": arguments}}


def output(call_id: str, text: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (
            [
                {"role": "developer", "content": "d"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "phase": "final_answer"},
            ],
            [
                {"role": "system", "content": "d"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "No."},
            ],
        ),
        # What came of one turn is one message.
        (
            [
                THOUGHT,
                {"role": "assistant", "content": "Let me see."},
                call("c1"),
                call("c2", '{"a": 1}'),
                output("c1", "one"),
                output("c2", [{"type": "input_text", "text": "two"}]),
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Short."}]},
                call("c3"),
            ],
            [
                {
                    "role": "assistant",
                    "content": "Let me see.",
                    "reasoning_content": "Hm.",
                    "tool_calls": [as_tool_call("c1"), as_tool_call("c2", '{"a": 1}')],
                },
                {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "one"},
                {"role": "tool", "tool_call_id": "c2", "name": "look", "content": "two"},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "Short.",
                    "tool_calls": [as_tool_call("c3")],
                },
            ],
        ),
        # Two messages in a row stay two, and thought after text begins another turn.
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, THOUGHT],
            [
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "assistant", "content": None, "reasoning_content": "Hm."},
            ],
        ),
    ],
)
def test_items_become_messages(items: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert messages(items) == expected


def test_instructions_come_first_and_join_a_system_message() -> None:
    user = {"role": "user", "content": "a"}
    assert messages([user], "I") == [{"role": "system", "content": "I"}, user]
    system = {"role": "developer", "content": "S"}
    assert messages([system, user], "I") == [{"role": "system", "content": "I\n\nS"}, user]


def test_ids_lead_back_to_the_response() -> None:
    items = with_ids([user_item("a"), {**user_item("b"), "id": "mine"}], RESPONSE)
    assert [item["id"] for item in items] == ["msg_0a_i0", "mine"]
    assert response_of(items[0]["id"]) == RESPONSE
    assert token_of(RESPONSE) == "0a"
    for other in ("mine", "msg_0a", "xyz_0a_1", "msg__1", ""):
        assert response_of(other) is None


def test_fields_that_nobody_reads_are_named_once() -> None:
    part = {"type": "output_text", "text": "x", "annotations": [], "logprobs": [], "odd": 1}
    items: list[dict[str, Any]] = [{"role": "assistant", "content": [part, part], "phase": "commentary"}] * 2
    items += [{**THOUGHT, "encrypted_content": None}, {**THOUGHT, "encrypted_content": "secret"}]
    assert unknown_fields(TypeAdapter(Items).validate_python(items)) == [
        "input.phase",
        "input.content.odd",
        "input.encrypted_content",
    ]
