"""Ollama's messages, as chat templates get them."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.ollama.conversation import read_turns
from app.api.ollama.schemas.bodies import OllamaMessage
from app.errors import RequestError


def read(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return read_turns([OllamaMessage.model_validate(message) for message in messages])


def calling(*names: str) -> dict[str, Any]:
    calls = [{"function": {"name": name, "arguments": {"place": "Oslo"}}} for name in names]
    return {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls}


def test_turns() -> None:
    assert read({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    (turn,) = read(calling("weather"))
    assert (turn["content"], turn["reasoning_content"]) == ("", "Hm.")
    assert turn["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"place": "Oslo"}}


def test_results_find_their_calls() -> None:
    asked, *results = read(
        calling("weather", "now", "weather"),
        {"role": "tool", "tool_name": "weather", "content": "Rain"},
        {"role": "tool", "tool_name": "now", "content": "12:00"},
        {"role": "tool", "content": "Snow"},
        {"role": "tool", "tool_name": "other", "content": "?"},
    )
    ids = [call["id"] for call in asked["tool_calls"]]
    assert len(set(ids)) == 3
    assert [turn.get("tool_call_id") for turn in results] == [ids[0], ids[1], ids[2], None]
    assert [turn.get("name") for turn in results] == ["weather", "now", "weather", "other"]


def test_ids_that_clients_give_are_kept() -> None:
    call = {"id": "call_7", "function": {"name": "now"}}
    asked, answered = read(
        {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_7", "content": "12:00"}
    )
    assert asked["tool_calls"][0]["id"] == answered["tool_call_id"] == "call_7"
    assert asked["tool_calls"][0]["function"]["arguments"] == {}


def test_images_are_refused() -> None:
    with pytest.raises(RequestError) as refused:
        read({"role": "user", "content": "?"}, {"role": "user", "content": "?", "images": ["AA=="]})
    assert refused.value.param == "messages[1].images"
