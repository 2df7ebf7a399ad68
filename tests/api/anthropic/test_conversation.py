"""Conversations of content blocks, as chat templates get them."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.anthropic.conversation import read_conversation
from app.api.anthropic.schemas.bodies import PromptBody
from app.errors import RequestError
from app.tasks.prompts import Conversation


def read(*messages: dict[str, Any], **fields: Any) -> Conversation:
    return read_conversation(PromptBody.model_validate({"messages": list(messages), **fields}))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "Oslo"}}


def result(content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **fields}


def test_system_text_goes_first() -> None:
    asked = read(user("Hi"), system="Be brief.")
    assert asked.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert asked.add_generation_prompt
    blocks = read(user("Hi"), system=[text("Be brief."), text("Be kind.")])
    assert blocks.messages[0] == {"role": "system", "content": [text("Be brief."), text("Be kind.")]}
    assert read(user("Hi"), {"role": "system", "content": "Now."}).messages[1] == {"role": "system", "content": "Now."}


def test_neighbours_of_one_role_are_one_turn() -> None:
    asked = read(user("a"), user([text("b"), text("c")]), assistant("d"), assistant("e"), user("f"))
    assert asked.messages == [
        {"role": "user", "content": [text("a"), text("b"), text("c")]},
        {"role": "assistant", "content": [text("d"), text("e")]},
        {"role": "user", "content": "f"},
    ]


def test_tools_that_were_called() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    asked = read(
        user("Weather?"),
        assistant([thought, text("I look."), CALL]),
        user([text("And now?"), result([text("Rain"), text("4 °C")])]),
    )
    call = {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
    assert asked.messages[1:] == [
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "name": "weather", "content": [text("Rain"), text("4 °C")]},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (result("Rain"), "Rain"),
        (result("No such place", is_error=True), "Error: No such place"),
        (result([], is_error=True), "Error: "),
        (result(None), ""),
    ],
)
def test_results_of_tools(given: dict[str, Any], shown: str) -> None:
    asked = read(user("?"), assistant([CALL]), user([given]))
    assert [turn["role"] for turn in asked.messages] == ["user", "assistant", "tool"]
    assert asked.messages[-1]["content"] == shown


def test_a_last_turn_of_the_assistants_is_gone_on_with() -> None:
    asked = read(user("Sum?"), assistant("It is ("))
    assert asked.continue_final_message
    assert not asked.add_generation_prompt
    empty = read(user("Sum?"), assistant(""))
    assert empty.messages == [{"role": "user", "content": "Sum?"}]
    assert empty.add_generation_prompt


def test_effort_is_a_variable_of_the_template() -> None:
    asked = read(user("Hi"), output_config={"effort": "low"})
    assert asked.template_kwargs == {"reasoning_effort": "low"}
    assert asked.names["reasoning_effort"] == "output_config.effort"
    assert read(user("Hi")).template_kwargs == {}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([user([CALL])], "messages[0].content[0]"),
        ([user("?"), assistant([text("a"), result("b")])], "messages[1].content[1]"),
        ([user("?"), {"role": "system", "content": [CALL]}], "messages[1].content[0]"),
        ([user("?"), assistant([CALL])], "messages"),
        ([assistant("")], "messages"),
    ],
)
def test_what_cannot_be_read_is_refused(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        read(*messages)
    assert (refused.value.status, refused.value.param) == (400, param)
