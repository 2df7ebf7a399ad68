"""Messages as Ollama has them, read as turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.api.ollama.schemas.bodies import OllamaMessage
from app.errors import RequestError


def read_turns(messages: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """Turns as chat templates expect them. Calls without ids get some, and results without are of the calls before.

    Raises:
        RequestError: 400, a message has images.
    """
    turns: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    for position, message in enumerate(messages):
        if (message.model_extra or {}).get("images"):
            param = f"messages[{position}].images"
            text = f"{param}: images are not supported, the model reads text alone."
            raise RequestError(text, code="unsupported_parameter", param=param)
        turn: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            turn["reasoning_content"] = message.thinking
        if message.tool_calls:
            turn["tool_calls"] = [_call(message, position, place) for place in range(len(message.tool_calls))]
            open_calls = [(call["id"], call["function"]["name"]) for call in turn["tool_calls"]]
        if message.role == "tool":
            turn |= _answered(message, open_calls)
        turns.append(turn)
    return turns


def _call(message: OllamaMessage, position: int, place: int) -> dict[str, Any]:
    call = (message.tool_calls or [])[place]
    function = {"name": call.function.name, "arguments": call.function.arguments or {}}
    # Nine letters, as some templates insist.
    return {"id": call.id or f"c{position % 10**4:04d}{place:04d}", "type": "function", "function": function}


def _answered(message: OllamaMessage, open_calls: list[tuple[str, str]]) -> dict[str, str]:
    """Which call a result is of: the first of that id or name that has none yet."""
    known = {}
    if message.tool_call_id is not None:
        known["tool_call_id"] = message.tool_call_id
    if message.tool_name is not None:
        known["name"] = message.tool_name
    for call_id, name in open_calls:
        if message.tool_call_id in (None, call_id) and message.tool_name in (None, name):
            open_calls.remove((call_id, name))
            return {"tool_call_id": call_id, "name": name}
    return known
