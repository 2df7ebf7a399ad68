"""What a reply in a conversation may be made of: tools to call, and how much thought."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from app.errors import RequestError
from app.serving.generator import Generator
from app.tasks.prompts import Conversation, EncodedPrompt, Prompt
from app.text.grammars.grammar import Grammar
from app.text.parsers.format import Opened, Schemas, Wanted
from app.text.parsers.reply import ReplyParser

MAX_TOOLS = 128
MAX_TOOL_BYTES = 1 << 19
"""Most bytes of all tools' schemas together, as JSON."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_THINKS = ("enable_thinking", "thinking")
"""Variables by which templates are told whether the model is to think."""
_TAIL = 32
"""Tokens of a prompt in which it may begin, or close, the thought."""
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "not", "enum", "const"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON Schema of the arguments, an object's; empty: an object of any fields."""
    strict: bool = False
    """The client asked for arguments that are valid by the schema. They are in any case; this is for the template."""

    def definition(self) -> dict[str, Any]:
        """The tool as OpenAI has it, for the template."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        function["parameters"] = dict(self.parameters) or {"type": "object", "properties": {}}
        if self.strict:
            function["strict"] = True
        return {"type": "function", "function": function}

    def schema(self) -> dict[str, Any]:
        """What arguments are held to: the schema, of an object that has no other fields than it names, if it names
        any and says nothing of others."""
        schema = dict(self.parameters)
        if not schema.keys() & _COMBINING:
            schema.setdefault("type", "object")
            if schema.get("properties") and "patternProperties" not in schema:
                schema.setdefault("additionalProperties", False)
        return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Which tools a reply may, or must, call."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: frozenset[str] | None = None
    """Names of the tools that may be called; None: all."""
    parallel: bool = True
    """Several calls in one reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyOptions:
    """What a client asks of a reply, whatever its protocol."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = ToolChoice()
    reasoning_budget: int | None = None
    """Most tokens of thought, after which it is closed; None: no bound of its own."""
    thinks: bool | None = None
    """Whether the model is to think, where its template can be told; None leaves it to the template."""

    def check(self) -> None:
        """Bounds the tools and what is chosen of them. Raises :class:`RequestError` 400."""
        if len(self.tools) > MAX_TOOLS:
            raise _refused(f"tools: {len(self.tools)} exceed the limit of {MAX_TOOLS}.", "tools")
        size = 0
        seen: set[str] = set()
        for place, tool in enumerate(self.tools):
            param = f"tools[{place}].name"
            if not _NAME.fullmatch(tool.name):
                message = f"{param}: {tool.name[:80]!r} is not 1 to 128 letters, digits, underscores and hyphens."
                raise _refused(message, param)
            if tool.name in seen:
                raise _refused(f"{param}: there is another tool {tool.name!r}.", param)
            seen.add(tool.name)
            if tool.schema().get("type", "object") != "object":
                param = f"tools[{place}].parameters"
                raise _refused(f"{param}: arguments are an object; the schema is that of something else.", param)
            size += len(json.dumps(tool.parameters))
        if size > MAX_TOOL_BYTES:
            raise _refused(f"tools: {size} bytes of schemas exceed the limit of {MAX_TOOL_BYTES}.", "tools")
        self._check_choice(seen)

    def about_thought(self) -> list[str]:
        """Names of the fields that ask something of a thought."""
        asked = {"reasoning_budget": self.reasoning_budget is not None, "thinks": self.thinks is True}
        return [name for name, is_asked in asked.items() if is_asked]

    def callable_tools(self) -> Schemas:
        """Schemas of the tools that the reply may call, by name."""
        names = self.choice.names
        if self.choice.mode == "none":
            return {}
        return {tool.name: tool.schema() for tool in self.tools if names is None or tool.name in names}

    def _check_choice(self, names: set[str]) -> None:
        if unknown := sorted((self.choice.names or frozenset()) - names):
            raise _refused(f"tool_choice: there is no tool {unknown[0][:80]!r}.", "tool_choice")
        if self.choice.mode == "required" and not self.callable_tools():
            raise _refused("tool_choice: a call is required, and there are no tools to call.", "tool_choice")


def with_reply(prompt: Prompt, options: ReplyOptions | None, generator: Generator) -> Prompt:
    """A prompt that tells the model of the tools, and whether to think."""
    if options is None or not isinstance(prompt, Conversation):
        return prompt
    if options.tools and options.choice.mode != "none" and not prompt.tools:
        prompt = dataclasses.replace(prompt, tools=[tool.definition() for tool in options.tools])
    if options.thinks is not None:
        given = dict(prompt.template_kwargs or {})
        read = {name for name in _THINKS if generator.chat_template.reads(name, template=prompt.template)}
        prompt = dataclasses.replace(prompt, template_kwargs=dict.fromkeys(read, options.thinks) | given)
    return prompt


@dataclass(frozen=True, slots=True)
class Bound:
    """What a reply has to match, and what tells its parts apart."""

    grammar: Grammar | None = None
    new_parser: Callable[[], ReplyParser] | None = None


def bind(
    options: ReplyOptions | None, form: Grammar | None, prompt: Prompt, encoded: EncodedPrompt, generator: Generator
) -> Bound:
    """What the reply to a prompt is bound to. Raises :class:`RequestError` 400 for schemas that cannot be honoured."""
    if options is None or not isinstance(prompt, Conversation):
        return Bound(form)
    reply_format, tokenizer = generator.reply_format, generator.tokenizer
    tools = options.callable_tools()
    opened = Opened.NOT
    if reply_format.thought is not None:
        tail = tokenizer.decode(encoded.token_ids[-_TAIL:], skip_special_tokens=False)
        opened = reply_format.opened(tail, prompt.last_text() if prompt.continue_final_message else "")
    budget = options.reasoning_budget
    if options.thinks is False and opened is Opened.YES:
        budget = 0  # the template would not be told
    wanted = Wanted(
        tools=tools,
        required=options.choice.mode == "required",
        parallel=options.choice.parallel,
        form=form,
        opened=opened,
        budget=budget,
    )
    grammar = reply_format.grammar(wanted, tokenizer)
    reads = reply_format.tells(tools)
    new_parser = partial(reply_format.parser, tools, opened, tokenizer) if reads else None
    return Bound(grammar, new_parser)


def _refused(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid_value", param=param)
