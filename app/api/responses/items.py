"""Items as they are kept and shown, and the conversation that they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from app.api.fields import Body
from app.api.responses.schemas.items import (
    InputCall,
    InputCallOutput,
    InputMessage,
    InputReasoning,
    InputReference,
    Item,
    RefusalPart,
    TextPart,
)

KeptItem = dict[str, Any]
"""An item with an id and a status, as JSON has it."""
_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
# What comes back of our own answers, or says nothing to a model.
_KNOWN_EXTRAS = frozenset({"annotations", "logprobs", "created_by"})


def token_of(response_id: str) -> str:
    """What the ids of a response's items have of its own."""
    return response_id.partition("_")[2]


def response_of(item_id: str) -> str | None:
    """Id of the response that an item is of, by the item's id; None if no item of ours is called so."""
    kind, _, rest = item_id.partition("_")
    token, _, place = rest.partition("_")
    return f"resp_{token}" if kind in _ID_PREFIXES.values() and token and place else None


def item_id(kind: str, response_id: str, place: int | str) -> str:
    """Id of an item.

    Args:
        place: what tells it from the response's other items.
    """
    return f"{_ID_PREFIXES[kind]}_{token_of(response_id)}_{place}"


def kept_item(item: Item) -> KeptItem:
    """An item as it is kept, without an id if it came without."""
    kept: KeptItem
    match item:
        case InputMessage():
            kept = {"type": "message", "role": item.role, "content": _message_content(item)}
        case InputCall():
            kept = {"type": "function_call", "call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        case InputCallOutput():
            output = item.output if isinstance(item.output, str) else [_part(part) for part in item.output]
            kept = {"type": "function_call_output", "call_id": item.call_id, "output": output}
        case InputReasoning():
            parts = {name: [_part(part) for part in getattr(item, name) or ()] for name in ("summary", "content")}
            kept = {"type": "reasoning", **parts}
        case InputReference():
            raise TypeError("a reference stands for an item")
    if item.id is not None:
        kept["id"] = item.id
    kept["status"] = item.status or "completed"
    return kept


def user_item(text: str) -> KeptItem:
    """A user's message, as it is kept."""
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content, "status": "completed"}


def with_ids(items: Sequence[KeptItem], response_id: str) -> list[KeptItem]:
    """The items a response is asked with, an id each."""
    return [{"id": item_id(item["type"], response_id, f"i{place}"), **item} for place, item in enumerate(items)]


def unknown_fields(items: Iterable[Item]) -> list[str]:
    """Fields of items and of their parts that nobody reads, by the names that errors have for them; each once."""
    names: dict[str, None] = {}
    for item in items:
        names |= {f"input.{name}": None for name in _unknown(item)}
        content = getattr(item, "content", None)
        for part in content if isinstance(content, list) else ():
            names |= {f"input.content.{name}": None for name in _unknown(part)}
    return list(names)


def _unknown(part: Body) -> list[str]:
    extras = part.model_extra or {}
    return [name for name, value in extras.items() if value is not None and name not in _KNOWN_EXTRAS]


def messages_of(items: Iterable[KeptItem], instructions: str | None) -> list[dict[str, Any]]:
    """The conversation in the form that chat templates are made for.

    What an assistant thought, said and called in a row is one message of it. Instructions go before a system message
    that stands first, as many templates take one alone.
    """
    messages = list(_messages(items))
    if instructions is not None:
        if messages and messages[0]["role"] == "system":
            instructions = "\n\n".join([instructions, messages.pop(0)["content"]])
        messages.insert(0, {"role": "system", "content": instructions})
    return messages


def _messages(items: Iterable[KeptItem]) -> Iterator[dict[str, Any]]:
    turn: dict[str, Any] | None = None
    names: dict[str, str] = {}
    for item in items:
        if item["type"] == "function_call":
            names[item["call_id"]] = item["name"]
        if _continues(turn, item):
            turn = turn or {"role": "assistant", "content": None}
            _add(turn, item)
            continue
        if turn is not None:
            yield turn
        turn = None
        if item["type"] == "function_call_output":
            called = {"name": names[item["call_id"]]} if item["call_id"] in names else {}  # some templates show it
            yield {"role": "tool", "tool_call_id": item["call_id"], **called, "content": _text(item["output"])}
        elif _is_assistants(item):
            turn = {"role": "assistant", "content": None}
            _add(turn, item)
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            yield {"role": role, "content": _text(item["content"])}
    if turn is not None:
        yield turn


def _is_assistants(item: KeptItem) -> bool:
    return item["type"] in ("reasoning", "function_call") or item.get("role") == "assistant"


def _continues(turn: dict[str, Any] | None, item: KeptItem) -> bool:
    """Whether an item belongs to the turn before it: thought comes first, then text, then calls."""
    if turn is None or not _is_assistants(item):
        return False
    match item["type"]:
        case "reasoning":
            return turn["content"] is None and "tool_calls" not in turn
        case "message":
            return turn["content"] is None and "tool_calls" not in turn
        case _:
            return True


def _add(turn: dict[str, Any], item: KeptItem) -> None:
    match item["type"]:
        case "reasoning":
            thought = _text(item["content"]) or _text(item["summary"])
            turn["reasoning_content"] = "\n".join(filter(None, [turn.get("reasoning_content"), thought]))
        case "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            turn.setdefault("tool_calls", []).append(call)
        case _:
            turn["content"] = _text(item["content"])


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)


def _message_content(item: InputMessage) -> list[dict[str, Any]]:
    if not isinstance(item.content, str):
        return [_part(part) for part in item.content]
    if item.role == "assistant":
        return [{"type": "output_text", "text": item.content, "annotations": []}]
    return [{"type": "input_text", "text": item.content}]


def _part(part: TextPart | RefusalPart) -> dict[str, Any]:
    if isinstance(part, RefusalPart):
        return {"type": "refusal", "refusal": part.refusal}
    return {"type": part.type, "text": part.text} | ({"annotations": []} if part.type == "output_text" else {})
