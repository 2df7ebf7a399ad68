"""Chat messages to a prompt, through the Jinja template that comes with a model.

A template mixes the server's control tokens with text that clients wrote, and only the first may take effect. The
template sees the text as it is; :mod:`app.text.template_origins` tells afterwards which control tokens of the prompt
are the template's own, and encoding reads no others. Without control tokens in messages the result is the plain
encoding of the rendered string.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jinja2

from app.errors import RequestError
from app.text.template_forms import MessageForms, find_forms
from app.text.template_origins import Origins
from app.text.template_sandbox import Budget, OutOfBudgetError, TemplateEnvironment, spending
from app.text.tokenizer import THREAD_THRESHOLD, EncodeOptions, Tokenizer

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
MAX_STEPS = 100_000_000
"""Of one rendering; a conversation of a hundred thousand messages takes some ten million."""
MAX_SECONDS = 10.0
"""For one rendering."""
INLINE_STEPS = 100_000
"""Of a rendering on the event loop: some milliseconds."""
_PROBE_STEPS = 2_000_000
_PROBE_SECONDS = 1.0

_END_OF_TEXT = "\ufdd1\ufdef"
"""Marks where the final message ends, to cut the rendered text there."""

_TRIMMABLE = "\u205f"
"""White space that no template writes: follows the mark unless the template trims."""


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


class _Prompt(NamedTuple):
    text: str
    breaks: list[int]
    """Positions in the text that control tokens are not read across."""


class ChatTemplate:
    """One model's template, rendered in a sandbox with the globals and filters that templates are written for."""

    def __init__(
        self,
        source: str | None,
        *,
        special_tokens: Mapping[str, str | None] | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        max_chars: int = MAX_PROMPT_CHARS,
    ) -> None:
        """
        Args:
            source: Jinja source; None for a model without a template, for which every call is an error.
            special_tokens: the model's tokens by the names that templates have for them (``bos_token``,
                ``pad_token``, …); None counts as absent.
            bos_token, eos_token: as in ``special_tokens``, before which they go.
            max_chars: longest prompt rendered, in characters.
        """
        self.source = source
        self._max_chars = max_chars
        # Absent ones stay undefined: templates test for that, and print nothing for it.
        named = [*(special_tokens or {}).items(), ("bos_token", bos_token), ("eos_token", eos_token)]
        self._tokens = {name: token for name, token in named if token is not None}
        self._template: jinja2.Template | None = None
        self._problem = "This model has no chat template; use /v1/completions."
        self._forms = MessageForms()
        self._origins: Origins | None = None
        if source is None:
            return
        self._environment = TemplateEnvironment()
        try:
            template = self._environment.from_string(self._environment.parse_bounded(source))
        except Exception as error:  # noqa: BLE001 - Jinja's own errors and, for odd sources, Python's compiler's
            self._problem = f"The model's chat template is broken: {error}"
            return
        try:
            self._forms = find_forms(partial(self._probe, template))
        except OutOfBudgetError as error:
            self._problem = f"The model's chat template does not get through a few words: {error}."
            return
        self._template = template

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Does ahead what the first call of :meth:`encode` would do for this tokenizer."""
        if self._template is not None:
            with contextlib.suppress(RequestError):  # told by each request
                self._origins_for(tokenizer)

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]) -> str:
        """The prompt as text, for people to read. Not for encoding: what in it came from messages is lost.

        Raises:
            RequestError: as :meth:`encode`.
        """
        with _answering_out_of_budget():
            return self._build(messages, None, Budget(MAX_STEPS, MAX_SECONDS), **options).text

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """The prompt as token ids, without a BOS but for the template's own.

        Args:
            messages: OpenAI-style messages; contents are strings, lists of text parts, or absent. Fields that are
                null are left out.
            max_tokens: as of :meth:`Tokenizer.encode`.

        Raises:
            RequestError: the model has no template, the template refuses the messages or takes too long over them, a
                message or an option is not supported, or the prompt is too long.
        """
        with _answering_out_of_budget():
            prompt = self._build(messages, tokenizer, Budget(MAX_STEPS, MAX_SECONDS), **options)
        return tokenizer.encode(prompt.text, **_encode_options(prompt, max_tokens))

    async def encode_async(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        deadline: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """:meth:`encode`, off the event loop when the messages are long or the template takes long over them.

        Args:
            deadline: as of :meth:`Tokenizer.encode_async`; a rendering that goes on then ends.
        """
        prompt = await self._build_async(messages, tokenizer, max_tokens, deadline, **options)
        return await tokenizer.encode_async(prompt.text, deadline=deadline, **_encode_options(prompt, max_tokens))

    async def _build_async(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        max_tokens: int | None,
        deadline: float | None,
        **options: Unpack[ChatOptions],
    ) -> _Prompt:
        length = _length([*messages, *(options.get("tools") or ()), options.get("template_kwargs") or {}])
        if length < THREAD_THRESHOLD:
            with contextlib.suppress(OutOfBudgetError):
                return self._build(messages, tokenizer, Budget(INLINE_STEPS, MAX_SECONDS), **options)
        else:
            tokenizer.check_length(length, max_tokens)
        budget = Budget(MAX_STEPS, MAX_SECONDS)
        work = partial(self._build, messages, tokenizer, budget, **options)
        try:
            with _answering_out_of_budget():
                return await tokenizer.long_work.run(length, work, deadline)
        finally:
            budget.cancel()  # the client may have gone, or its time be up

    def _build(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer | None,
        budget: Budget,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> _Prompt:
        """The prompt, without breaks if there is no tokenizer. Raises OutOfBudgetError besides RequestError."""
        if self._template is None:
            raise _failure(self._problem)
        if continue_final_message and add_generation_prompt:
            raise RequestError("continue_final_message needs add_generation_prompt to be false.", param="messages")
        arguments = dict(template_kwargs or {})
        unknown = sorted(arguments.keys() - TEMPLATE_KWARGS)
        if unknown:
            raise RequestError(f"Unknown chat template arguments: {', '.join(unknown)}.", param="chat_template_kwargs")
        prepared = [self._forms.message(message) for message in messages]
        if continue_final_message:
            _mark_end(prepared)
        written = {"documents": None, **arguments, "messages": prepared, "tools": list(tools) if tools else None}
        variables = {**self._tokens, **written, "add_generation_prompt": add_generation_prompt}
        with spending(budget):
            text = self._run(self._template, variables)
            breaks = [] if tokenizer is None else self._breaks(text, written, variables, tokenizer)
        if continue_final_message:
            text = _cut_at_end(text)
        return _Prompt(text, [position for position in breaks if position < len(text)])

    def _breaks(
        self, text: str, written: Mapping[str, Any], variables: Mapping[str, Any], tokenizer: Tokenizer
    ) -> list[int]:
        """Where control tokens are that clients had a part in; ``written`` are the variables that clients set."""
        origins = self._origins_for(tokenizer)
        if not origins.always_in_doubt and not origins.control.may_come_from("\n".join(_strings(written))):
            return []
        roles = {message["role"] for message in written["messages"]}
        return origins.breaks(text, roles, lambda template, **others: self._run(template, {**variables, **others}))

    def _origins_for(self, tokenizer: Tokenizer) -> Origins:
        if self._origins is None or self._origins.control is not tokenizer.control:
            try:
                self._origins = Origins(self.source or "", self._environment, tokenizer.control, self._tokens)
            except RecursionError as error:
                raise _failure("The model's chat template is nested too deeply.") from error
        return self._origins

    def _probe(
        self,
        template: jinja2.Template,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        variables = {"documents": None, "messages": messages, "tools": tools, "add_generation_prompt": True}
        with spending(Budget(_PROBE_STEPS, _PROBE_SECONDS)):
            return self._run(template, {**self._tokens, **variables})

    def _run(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        chunks: list[str] = []
        size = 0
        try:
            for chunk in template.generate(variables):
                chunks.append(chunk)
                size += len(chunk)
                if size > self._max_chars:
                    break
        except OutOfBudgetError:
            raise
        except Exception as error:
            # Besides Jinja's own errors, whatever its expressions raise on messages that they do not expect.
            raise _failure(f"The chat template failed: {error}") from error
        if size > self._max_chars:
            raise _failure(f"The chat template made a prompt of more than {self._max_chars} characters.")
        return "".join(chunks)


@contextlib.contextmanager
def _answering_out_of_budget() -> Iterator[None]:
    try:
        yield
    except OutOfBudgetError as error:
        raise _failure(f"The chat template failed: {error}.") from error


def _failure(message: str) -> RequestError:
    return RequestError(message, code="chat_template_error", param="messages")


def _encode_options(prompt: _Prompt, max_tokens: int | None) -> EncodeOptions:
    return {
        "add_special_tokens": False,
        "parse_special": True,
        "breaks": prompt.breaks,
        "max_tokens": max_tokens,
    }


def _length(written: Sequence[Mapping[str, Any]]) -> int:
    """Characters of it, about."""
    size = 0
    for entry in written:
        for key, value in entry.items():
            size += len(key) + (len(value) if isinstance(value, str) else len(repr(value)))
    return size


def _strings(tree: Any) -> list[str]:
    """Every string in a tree, keys included."""
    found: list[str] = []
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, (dict, Mapping)):
            found += (key for key in value if isinstance(key, str))
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
    return found


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
        raise _failure("The chat template does not show the final message, so it cannot be continued.")
    return head if tail.startswith(_TRIMMABLE) else head.rstrip()
