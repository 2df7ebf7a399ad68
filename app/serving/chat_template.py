"""Chat messages to a prompt, through the Jinja template that comes with a model.

A template mixes the server's control tokens with text that clients wrote, and only the first may take effect. The
rendered string cannot tell them apart, so before rendering every control token spelt in client text gets a break
inside (:meth:`Tokenizer.break_control_tokens`); encoding drops the breaks after it has looked for control tokens.
Templates may trim, split and search the text as they like: it differs only inside a spelt control token. Without such
a token the result is the plain encoding of the rendered string.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from app.serving.errors import RequestError
from app.serving.tokenizer import THREAD_THRESHOLD, Tokenizer

TEMPLATE_KWARGS = frozenset(
    {
        "date_string",
        "documents",
        "enable_thinking",
        "reasoning_effort",
        "thinking",
        "thinking_budget",
        "tools_in_user_message",
    }
)
"""Variables that a request may set for the template."""

MAX_PROMPT_CHARS = 16_000_000

_END_OF_TEXT = "\ufdd1\ufdef"
"""Marks where the final message ends, to cut the rendered text there."""

_TRIMMABLE = "\u205f"
"""White space that no template writes: follows the mark unless the template trims."""

_ROLE = re.compile(r"[\w-]{1,64}")
_LOOPS_OVER_CONTENT = re.compile(r"""for\s+\w+\s+in\s+\w+(\.content|\[['"]content['"]\])""")
_TESTS_FOR_STRING = re.compile(r"""content(['"]\])?\s+is\s+(not\s+)?string""")


class ChatOptions(TypedDict, total=False):
    """What a request may say about how its messages become a prompt."""

    tools: Sequence[Mapping[str, Any]] | None
    """OpenAI-style tool definitions, for templates that know them."""
    add_generation_prompt: bool
    """End with the opening of the assistant's turn; true by default."""
    continue_final_message: bool
    """Leave the last message's turn open, for the model to go on with it; false by default."""
    template_kwargs: Mapping[str, Any] | None
    """Further variables, of :data:`TEMPLATE_KWARGS`."""


class ChatTemplate:
    """One model's template, rendered in a sandbox with the globals and filters that templates are written for."""

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        max_chars: int = MAX_PROMPT_CHARS,
    ) -> None:
        """
        Args:
            source: Jinja source; None for a model without a template, for which every call is an error.
            max_chars: longest prompt rendered, in characters.
        """
        self.source = source
        self._max_chars = max_chars
        # Absent ones stay undefined: templates test for that, and print nothing for it.
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: token for name, token in tokens.items() if token is not None}
        self._template: jinja2.Template | None = None
        self._problem = "This model has no chat template; use /v1/completions."
        self._takes_parts = False
        if source is None:
            return
        # A template that loops over the parts of a message and never asks whether it is a string needs parts.
        self._takes_parts = bool(_LOOPS_OVER_CONTENT.search(source)) and not _TESTS_FOR_STRING.search(source)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            self._problem = f"The model's chat template is broken: {error}"

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]) -> str:
        """The prompt as text, for people to read. Not for encoding: what in it came from messages is lost.

        Raises:
            RequestError: as :meth:`encode`.
        """
        return self._render(messages, lambda text: text, **options)

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, **options: Unpack[ChatOptions]
    ) -> list[int]:
        """The prompt as token ids, without a BOS but for the template's own.

        Args:
            messages: OpenAI-style messages; contents are strings, lists of text parts, or absent.

        Raises:
            RequestError: the model has no template, the template refuses the messages, or a message or an option is
                not supported.
        """
        prompt = self._render(messages, tokenizer.break_control_tokens, **options)
        return tokenizer.encode(prompt, add_special_tokens=False, parse_special=True, honour_breaks=True)

    async def encode_async(
        self, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, **options: Unpack[ChatOptions]
    ) -> list[int]:
        """:meth:`encode`, off the event loop when the messages are long."""
        if _are_long(messages):
            # The rendering too: a template takes seconds over a hundred thousand messages.
            return await asyncio.to_thread(self.encode, messages, tokenizer, **options)
        prompt = self._render(messages, tokenizer.break_control_tokens, **options)
        return await tokenizer.encode_async(prompt, add_special_tokens=False, parse_special=True, honour_breaks=True)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        guard: Callable[[str], str],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        if self._template is None:
            raise RequestError(self._problem, code="chat_template_error", param="messages")
        if continue_final_message and add_generation_prompt:
            raise RequestError("continue_final_message needs add_generation_prompt to be false.", param="messages")
        arguments = dict(template_kwargs or {})
        unknown = sorted(arguments.keys() - TEMPLATE_KWARGS)
        if unknown:
            raise RequestError(f"Unknown chat template arguments: {', '.join(unknown)}.", param="chat_template_kwargs")
        prepared = [self._prepare(message, guard) for message in messages]
        if continue_final_message:
            _mark_end(prepared)
        rendered = self._run(
            self._template,
            messages=prepared,
            tools=_guarded(tools, guard) or None,
            add_generation_prompt=add_generation_prompt,
            **_guarded(arguments, guard),
            **self._tokens,
        )
        return _cut_at_end(rendered) if continue_final_message else rendered

    def _run(self, template: jinja2.Template, **variables: Any) -> str:
        chunks: list[str] = []
        size = 0
        try:
            for chunk in template.generate(**variables):
                chunks.append(chunk)
                size += len(chunk)
                if size > self._max_chars:
                    break
        except Exception as error:
            # Besides Jinja's own errors, whatever its expressions raise on messages that they do not expect.
            message = f"The chat template failed: {error}"
            raise RequestError(message, code="chat_template_error", param="messages") from error
        if size > self._max_chars:
            message = f"The chat template made a prompt of more than {self._max_chars} characters."
            raise RequestError(message, code="chat_template_error", param="messages")
        return "".join(chunks)

    def _prepare(self, message: Mapping[str, Any], guard: Callable[[str], str]) -> dict[str, Any]:
        """The message as the template expects it, its text guarded."""
        role = message.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise RequestError(f"{role!r} is not a message role.", param="messages")
        # Arguments are parsed before they are guarded: JSON can spell a control token in escapes.
        others = {key: value for key, value in message.items() if key not in ("role", "content", "tool_calls")}
        if message.get("tool_calls"):
            others["tool_calls"] = [_with_parsed_arguments(call) for call in message["tool_calls"]]
        texts = [guard(text) for text in _texts(message.get("content"))]
        content = [{"type": "text", "text": text} for text in texts] if self._takes_parts else "\n".join(texts)
        return {"role": role, "content": content, **_guarded(others, guard)}


def _are_long(messages: Sequence[Mapping[str, Any]]) -> bool:
    size = 0
    for message in messages:
        size += len(repr(message))
        if size >= THREAD_THRESHOLD:
            return True
    return False


def _texts(content: object) -> list[str]:
    match content:
        case None:
            return []
        case str():
            return [content]
        case list():
            return [_part_text(part) for part in content]
        case _:
            raise RequestError("A message's content must be a string or a list of parts.", param="messages")


def _part_text(part: object) -> str:
    match part:
        case str():
            return part
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": kind}:
            raise RequestError(f"Content parts of type {kind!r} are not supported by this model.", param="messages")
        case _:
            raise RequestError("A content part must be an object with a type.", param="messages")


def _guarded(value: Any, guard: Callable[[str], str]) -> Any:
    """A copy with every string in it guarded, keys included."""
    match value:
        case str():
            return guard(value)
        case Mapping():
            return {_guarded(key, guard): _guarded(item, guard) for key, item in value.items()}
        case list() | tuple():
            return [_guarded(item, guard) for item in value]
        case _:
            return value


def _with_parsed_arguments(call: Any) -> Any:
    """Templates print a call's arguments as JSON, so they take an object; on the wire it is a string."""
    match call:
        case {"function": {"arguments": str(arguments)} as function}:
            try:
                parsed = json.loads(arguments)
            except ValueError as error:
                raise RequestError(f"A tool call's arguments are not JSON: {error}", param="messages") from error
            return {**call, "function": {**function, "arguments": parsed}}
        case _:
            return call


def _mark_end(messages: list[dict[str, Any]]) -> None:
    """Ends the last message's text with a mark, and white space that shows afterwards whether the template trims."""
    content = messages[-1]["content"] if messages else ""
    if not content:
        raise RequestError("There is no final message to continue.", param="messages")
    if isinstance(content, str):
        messages[-1]["content"] = f"{content}{_END_OF_TEXT}{_TRIMMABLE}"
    else:
        content[-1]["text"] += _END_OF_TEXT + _TRIMMABLE


def _cut_at_end(rendered: str) -> str:
    head, mark, tail = rendered.rpartition(_END_OF_TEXT)
    if not mark:
        message = "The chat template does not show the final message, so it cannot be continued."
        raise RequestError(message, code="chat_template_error", param="messages")
    return head if tail.startswith(_TRIMMABLE) else head.rstrip()


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=lineno)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)
