"""What bodies ask of an answer besides its text."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.anthropic.messages import read_messages
from app.api.anthropic.schemas.bodies import MessagesBody
from app.errors import RequestError
from app.tasks.generate import GenerateTask
from app.tasks.reply import ReplyOptions, ToolChoice

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"name": "f", "description": "F.", "input_schema": SCHEMA, "strict": True}
FORMAT = {"type": "json_schema", "schema": SCHEMA}


def read(**fields: Any) -> GenerateTask:
    body = {"max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return read_messages(MessagesBody.model_validate(body)).task


def reply(**fields: Any) -> ReplyOptions:
    options = read(**fields).reply
    assert options is not None
    return options


def test_tools() -> None:
    (tool,) = reply(tools=[TOOL]).tools
    assert (tool.name, tool.description, tool.parameters, tool.strict) == ("f", "F.", SCHEMA, True)


@pytest.mark.parametrize(
    ("choice", "read_as"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "any"}, ToolChoice(mode="required")),
        ({"type": "tool", "name": "f"}, ToolChoice(mode="required", names=frozenset(["f"]))),
        ({"type": "none"}, ToolChoice(mode="none")),
    ],
)
def test_choices_of_tools(choice: dict[str, Any] | None, read_as: ToolChoice) -> None:
    assert reply(tools=[TOOL], tool_choice=choice).choice == read_as


@pytest.mark.parametrize(
    ("thinking", "thinks", "budget"),
    [
        (None, False, None),
        ({"type": "disabled"}, False, None),
        ({"type": "adaptive"}, True, None),
        ({"type": "enabled", "budget_tokens": 1024, "display": "summarized"}, True, 1024),
    ],
)
def test_thought(thinking: dict[str, Any] | None, thinks: bool, budget: int | None) -> None:
    options = reply(thinking=thinking)
    assert (options.thinks, options.reasoning_budget) == (thinks, budget)


def test_a_form() -> None:
    assert read().form is None
    new, older = read(output_config={"format": FORMAT}), read(output_format=FORMAT)
    assert new.form is not None
    assert new.form == older.form
    assert new.names["form"] == "output_config.format.schema"
    with pytest.raises(RequestError):
        read(output_config={"format": FORMAT}, output_format=FORMAT)
