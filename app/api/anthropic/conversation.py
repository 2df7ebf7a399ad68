"""Messages made of content blocks, read as a conversation."""

from __future__ import annotations

from typing import Any

from app.api.anthropic.errors import NO_THREADS
from app.api.anthropic.schemas.blocks import (
    InputMessage,
    RedactedThinkingBlock,
    TextBlock,
    Texts,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from app.api.anthropic.schemas.bodies import PromptBody
from app.errors import RequestError
from app.tasks.prompts import Conversation

_ERROR = "Error: "
_BLOCKS_OF = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


def read_conversation(body: PromptBody) -> Conversation:
    """The conversation. A last turn of the assistant's is gone on with.

    Raises:
        RequestError: 400, a block stands in a message of the wrong role, the last message calls tools, or most of the
            conversation is to be remembered.
    """
    if body.thread is not None:
        reason = "thread is not supported: conversations are not kept, send all of them."
        raise RequestError(reason, code=NO_THREADS, param="thread")
    turns = _Turns()
    if body.system:
        turns.add_system(body.system)
    for position, message in enumerate(body.messages):
        _add_message(turns, message, f"messages[{position}]")
    messages = turns.finished()
    continues = _continues_last(messages)
    effort = body.output_config and body.output_config.effort
    return Conversation(
        messages=messages,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        template_kwargs={"reasoning_effort": effort} if effort is not None else {},
        names={"reasoning_effort": "output_config.effort"},
    )


def _continues_last(messages: list[dict[str, Any]]) -> bool:
    """Whether the last message is to be gone on with; an empty one is taken away. Raises :class:`RequestError` 400."""
    last = messages[-1]
    if last["role"] != "assistant":
        return False
    if "tool_calls" in last:
        text = "messages: the last one calls tools, whose results have to follow."
        raise RequestError(text, code="invalid_value", param="messages")
    if last["content"]:
        return True
    if "reasoning_content" in last or len(messages) == 1:
        text = "messages: the last one is the assistant's and has no text to go on with."
        raise RequestError(text, code="invalid_value", param="messages")
    del messages[-1]
    return False


class _Turns:
    """Turns of a conversation as templates expect them, while it is read."""

    def __init__(self) -> None:
        self._turns: list[dict[str, Any]] = []
        self._tools: dict[str, str] = {}
        """Names of the tools that were called, by the calls' ids."""

    def add_system(self, content: Texts) -> None:
        """What stands before the first message."""
        for text in _texts(content):
            self.add_text("system", text)

    def add_text(self, role: str, text: str) -> None:
        """A piece of text of the turn of ``role``."""
        self.turn(role)["content"].append({"type": "text", "text": text})

    def add_block(self, role: str, block: object) -> None:
        """A block of the turn of ``role``."""
        match block:
            case TextBlock():
                self.add_text(role, block.text)
            case ThinkingBlock():
                turn = self.turn(role)
                turn["reasoning_content"] = turn.get("reasoning_content", "") + block.thinking
            case ToolUseBlock():
                self._tools[block.id] = block.name
                function = {"name": block.name, "arguments": block.input}
                call = {"id": block.id, "type": "function", "function": function}
                self.turn(role).setdefault("tool_calls", []).append(call)
            case ToolResultBlock():
                self._add_result(block)
            case RedactedThinkingBlock():
                self.turn(role)

    def turn(self, role: str) -> dict[str, Any]:
        """The last turn if it is of ``role``, else a new one."""
        if not self._turns or self._turns[-1]["role"] != role:
            self._turns.append({"role": role, "content": []})
        return self._turns[-1]

    def finished(self) -> list[dict[str, Any]]:
        """All turns; a single piece of text is a string."""
        for turn in self._turns:
            parts = turn["content"]
            if isinstance(parts, list) and len(parts) <= 1:
                turn["content"] = parts[0]["text"] if parts else ""
        return self._turns

    def _add_result(self, block: ToolResultBlock) -> None:
        texts = _texts(block.content or "")
        if block.is_error:
            texts = [_ERROR + texts[0], *texts[1:]] if texts else [_ERROR]
        parts = [{"type": "text", "text": text} for text in texts]
        turn: dict[str, Any] = {"role": "tool", "tool_call_id": block.tool_use_id, "content": parts}
        if (name := self._tools.get(block.tool_use_id)) is not None:
            turn["name"] = name
        self._turns.append(turn)


def _add_message(turns: _Turns, message: InputMessage, path: str) -> None:
    if not message.content:
        turns.turn(message.role)
    elif isinstance(message.content, str):
        turns.add_text(message.role, message.content)
    else:
        for position, block in enumerate(message.content):
            if not isinstance(block, _BLOCKS_OF[message.role]):
                param = f"{path}.content[{position}]"
                text = f"{param}: blocks of type {block.type} do not belong to messages of role {message.role}."
                raise RequestError(text, code="invalid_value", param=param)
        # Results follow the calls, whatever text stands before them.
        for block in sorted(message.content, key=lambda block: not isinstance(block, ToolResultBlock)):
            turns.add_block(message.role, block)


def _texts(content: Texts) -> list[str]:
    if isinstance(content, str):
        return [content] if content else []
    return [block.text for block in content]
