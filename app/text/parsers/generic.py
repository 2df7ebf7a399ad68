"""Calls for models whose chat template knows no tools: the server tells them of the tools and of a form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.text.parsers.format import ModelFacts
from app.text.parsers.hermes import HermesCalls

_INSTRUCTIONS = """You can call these functions. Each line is one of them, with a JSON Schema of its arguments:
{tools}
To call a function, answer with nothing but
<tool_call>
{{"name": "NAME", "arguments": {{ARGUMENTS}}}}
</tool_call>
and stop. Its result comes with the next message. If no function helps, answer in plain words."""


class GenericCalls(HermesCalls):
    """The most usual form of calls, described in a system message."""

    name = "generic"
    described = True

    def recognises(self, facts: ModelFacts) -> bool:  # noqa: ARG002
        """Any model, if nothing else does."""
        return True


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """Text that tells a model of tools (OpenAI's definitions)."""
    return _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))


def call_text(call: Mapping[str, Any]) -> str:
    """A call of the conversation's past, as the model would write it."""
    function = call.get("function") or {}
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(function.get("name", ""))}, "arguments": {text or "{}"}}}\n</tool_call>'


def result_text(content: str) -> str:
    """A tool's result, as a turn of the user has it."""
    return f"<tool_response>\n{content}\n</tool_response>"
