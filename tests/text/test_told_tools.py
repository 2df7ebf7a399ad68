"""Conversations with tools for templates that show none of it."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import RequestError
from app.text.chat_template import ChatTemplate
from app.text.told_tools import with_short_ids

_TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
PLAIN = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}" + _TURNS
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turn') }}{% endif %}{% endfor %}"
    + _TURNS
)
KNOWING = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}\n"
    "{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "1 + 2?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}},
            {"id": "b", "type": "function", "function": {"name": "add", "arguments": {"a": 0, "b": 3}}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "3"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "3"}]},
    {"role": "user", "content": "And?"},
]


def test_calls_and_results_are_told_in_words() -> None:
    shown = ChatTemplate(PLAIN).render(HISTORY)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' in shown
    assert '{"name": "add", "arguments": {"a": 0, "b": 3}}' in shown
    assert shown.count("<tool_response>\n3\n</tool_response>") == 2
    assert "None" not in shown


def test_roles_stay_in_turn() -> None:
    shown = ChatTemplate(NO_SYSTEM).render(HISTORY)
    assert shown.count("[user]") == 2
    assert shown.rstrip().endswith("And?")


def test_a_template_that_knows_calls_is_left_to_itself() -> None:
    shown = ChatTemplate(KNOWING).render(HISTORY)
    assert '<add {"a": 1, "b": 2}>' in shown
    assert "[tool] 3" in shown
    assert "tool_call>" not in shown


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_change_nothing(calls: object) -> None:
    message = {"role": "assistant", "content": "Hello", "tool_calls": calls}
    assert "[assistant] Hello\n" in ChatTemplate(PLAIN).render([{"role": "user", "content": "Hi"}, message])


def test_tools_are_told_in_the_systems_message() -> None:
    template = ChatTemplate(PLAIN)
    alone = template.telling([{"role": "user", "content": "Hi"}], [TOOL])
    assert [message["role"] for message in alone] == ["system", "user"]
    joined = template.telling([{"role": "system", "content": "Be brief."}, *alone[1:]], [TOOL])
    assert [message["role"] for message in joined] == ["system", "user"]
    assert joined[0]["content"].startswith("Be brief.\n\n")
    for told in (alone, joined):
        assert '"name": "add"' in told[0]["content"]
        assert "<tool_call>" in told[0]["content"]


def test_tools_are_told_in_the_users_first_message_where_there_is_no_system() -> None:
    told = ChatTemplate(NO_SYSTEM).telling([{"role": "user", "content": "Hi"}], [TOOL])
    (message,) = told
    assert message["role"] == "user"
    assert message["content"].endswith("\n\nHi")


def test_parts_that_are_no_text_are_still_refused() -> None:
    message = {"role": "tool", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(RequestError):
        ChatTemplate(PLAIN).render([message])


def test_short_ids_agree() -> None:
    (call, result, plain) = with_short_ids(
        [
            {"role": "assistant", "tool_calls": [{"id": "call_123456789", "function": {"name": "f"}}]},
            {"role": "tool", "tool_call_id": "call_123456789", "content": "1"},
            {"role": "tool", "tool_call_id": "abcDEF123", "content": "1"},
        ]
    )
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(result["tool_call_id"]) == 9
    assert result["tool_call_id"].isalnum()
    assert plain["tool_call_id"] == "abcDEF123"
