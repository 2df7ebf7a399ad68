"""Chat messages to a prompt, through the Jinja template that comes with a model.

A template mixes the server's control tokens with text that clients wrote, and only the first may take effect. The
template sees the text as it is; :mod:`app.text.template_origins` tells afterwards which control tokens of the prompt
are the template's own, and encoding reads no others. Without control tokens in messages the result is the plain
encoding of the rendered string.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jinja2
import jinja2.meta

from app.errors import RequestError
from app.text.final_message import cut_at_end, mark_end
from app.text.template_forms import MessageForms, find_forms
from app.text.template_origins import Origins
from app.text.template_sandbox import Budget, OutOfBudgetError, TemplateEnvironment, spending
from app.text.tokenizer import THREAD_THRESHOLD, EncodeOptions, Tokenizer
from app.text.told_tools import in_words, with_tools

_NOT_FOR_REQUESTS = frozenset({"add_generation_prompt", "continue_final_message", "messages", "tools"})
"""Variables of templates that come from elsewhere."""

MAX_PROMPT_CHARS = 16_000_000
"""Longest prompt rendered, in characters."""
MAX_STEPS = 100_000_000
"""Most steps of one rendering. A conversation of a hundred thousand messages takes some ten million."""
MAX_SECONDS = 10.0
"""Longest time of one rendering."""
INLINE_STEPS = 100_000
"""Most steps of a rendering on the event loop: some milliseconds."""
_MAX_NAME = 64
_PROBE_STEPS = 2_000_000
_PROBE_SECONDS = 1.0


class ChatOptions(TypedDict, total=False):
    """What a request may say about how its messages become a prompt."""

    tools: Sequence[Mapping[str, Any]] | None
    """OpenAI-style tool definitions, for templates that know them."""
    add_generation_prompt: bool
    """End with the opening of the assistant's turn; true by default."""
    continue_final_message: bool
    """Leave the last message's turn open, for the model to go on with it; false by default."""
    template_kwargs: Mapping[str, Any] | None
    """Further variables. Those that the template does not read are left out."""


class _Prompt(NamedTuple):
    text: str
    breaks: list[int]
    """Positions in the text that control tokens are not read across."""


DEFAULT, FOR_TOOLS = "default", "tool_use"
"""Names of the templates that are taken where none is named: the second where there are tools."""


class ChatTemplate:
    """One model's template, rendered in a sandbox with the globals and filters that templates are written for; and
    those that it has by other names."""

    def __init__(
        self,
        source: str | None,
        *,
        special_tokens: Mapping[str, str | None] | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        max_chars: int = MAX_PROMPT_CHARS,
        named: Mapping[str, str] | None = None,
        preferred: str | None = None,
    ) -> None:
        """
        Args:
            source: Jinja source; None for a model without a template, for which every call is an error.
            special_tokens: the model's tokens by the names that templates have for them (``bos_token``,
                ``pad_token``, …); None counts as absent.
            bos_token, eos_token: as in ``special_tokens``, before which they go.
            max_chars: longest prompt rendered, in characters.
            named: sources of the model's templates by their names, but for the default one, which is ``source``.
            preferred: name of the template that is taken where none is named.

        Raises:
            ValueError: there is none of the preferred name; lists those that there are.
        """
        self.source = source
        self._preferred = preferred
        self._max_chars = max_chars
        # Absent ones stay undefined: templates test for that, and print nothing for it.
        tokens = [*(special_tokens or {}).items(), ("bos_token", bos_token), ("eos_token", eos_token)]
        self._tokens = {name: token for name, token in tokens if token is not None}
        self._template: jinja2.Template | None = None
        self._problem = "This model has no chat template; use /v1/completions."
        self._named = {
            name: ChatTemplate(text, special_tokens=self._tokens, max_chars=max_chars)
            for name, text in (named or {}).items()
        }
        if preferred is not None and preferred not in self.names:
            raise ValueError(f"the model has no chat template {preferred!r}; it has {_listed(self.names)}")
        if self._named:
            self._problem = f"This model has no default chat template; chat_template may name {_listed(self.names)}."
        self._forms = MessageForms()
        self._reads: frozenset[str] = frozenset()
        self._origins: Origins | None = None
        if source is None:
            return
        self._environment = TemplateEnvironment()
        try:
            tree = self._environment.parse_bounded(source)
            self._reads = frozenset(jinja2.meta.find_undeclared_variables(tree))
            template = self._environment.from_string(tree)
        except Exception as error:  # noqa: BLE001 - Jinja's own errors and, for odd sources, Python's compiler's
            self._problem = f"The model's chat template is broken: {error}"
            return
        try:
            forms = find_forms(partial(self._probe, template))
            # One that knows calls is left to itself, even if it did not show those that were tried.
            self._forms = replace(forms, shows_calls=True) if "tool_calls" in source else forms
        except OutOfBudgetError as error:
            self._problem = f"The model's chat template does not get through a few words: {error}."
            return
        self._template = template

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's templates."""
        return (*((DEFAULT,) if self.source is not None else ()), *sorted(self._named))

    def unread(
        self,
        variables: Iterable[str],
        *,
        template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[str]:
        """Those of the variables that the template does not read, whatever the messages.

        Args:
            template, tools: as of :meth:`encode`; of a name that there is not, nothing is unread.
        """
        if template is not None and template not in self.names:
            return []
        chosen = self._chosen(template, tools)
        return [] if chosen._template is None else [name for name in variables if name not in chosen._reads]

    @property
    def tools_source(self) -> str:
        """Source of the template that is taken where there are tools; empty without one."""
        name = self._preferred or (FOR_TOOLS if FOR_TOOLS in self._named else DEFAULT)
        return self._named.get(name, self).source or ""

    def reads(self, variable: str, *, template: str | None = None) -> bool:
        """Whether a template reads a variable, ``tools`` among them.

        Args:
            template: its name; None: that which is taken where there are tools.
        """
        name = template if template in self.names else None
        return variable in self._chosen(name, [{}])._reads

    def telling(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], *, template: str | None = None
    ) -> list[Mapping[str, Any]]:
        """The messages with words that tell the model of the tools, for a template that does not.

        Raises:
            RequestError: as :meth:`encode`.
        """
        return with_tools(messages, tools, self._chosen(template, None)._forms)

    def _chosen(self, name: str | None, tools: Sequence[Mapping[str, Any]] | None) -> ChatTemplate:
        """The template of a name, or that which is taken without one."""
        if name is None:
            name = self._preferred or (FOR_TOOLS if tools and FOR_TOOLS in self._named else DEFAULT)
        elif name not in self.names:
            is_text = "{" in name
            wrong = "chat_template takes a name, not a text" if is_text else f"There is no chat template {_shown(name)}"
            raise RequestError(
                f"{wrong}; the model has {_listed(self.names)}.",
                code="unsupported_parameter" if is_text else "invalid_value",
                param="chat_template",
            )
        return self._named.get(name, self)

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Does ahead what the first call of :meth:`encode` would do for this tokenizer."""
        for template in self._named.values():
            template.prepare(tokenizer)
        if self._template is not None:
            with contextlib.suppress(RequestError):  # told by each request
                self._origins_for(tokenizer)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, template: str | None = None, **options: Unpack[ChatOptions]
    ) -> str:
        """The prompt as text, for people to read. Not for encoding: what in it came from messages is lost.

        Raises:
            RequestError: as :meth:`encode`.
        """
        chosen = self._chosen(template, options.get("tools"))
        with _answering_out_of_budget():
            return chosen._build(messages, None, Budget(MAX_STEPS, MAX_SECONDS), **options).text

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        template: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """The prompt as token ids, without a BOS but for the template's own.

        Args:
            messages: OpenAI-style messages; contents are strings, lists of text parts, or absent. Fields that are
                null are left out.
            max_tokens: as of :meth:`Tokenizer.encode`.
            template: name of one of the model's templates; None: that for tools if there are tools, otherwise the
                default.

        Raises:
            RequestError: the model has no template or none of that name, the template refuses the messages or takes too
                long over them, a message or an option is not supported, or the prompt is too long.
        """
        chosen = self._chosen(template, options.get("tools"))
        with _answering_out_of_budget():
            prompt = chosen._build(messages, tokenizer, Budget(MAX_STEPS, MAX_SECONDS), **options)
        return tokenizer.encode(prompt.text, **_encode_options(prompt, max_tokens))

    async def encode_async(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        keep_last: int | None = None,
        deadline: float | None = None,
        template: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """:meth:`encode`, off the event loop when the messages are long or the template takes long over them.

        Args:
            keep_last: as of :meth:`Tokenizer.encode`.
            deadline: as of :meth:`Tokenizer.encode_async`; a rendering that goes on then ends.
        """
        chosen = self._chosen(template, options.get("tools"))
        most = max_tokens if keep_last is None else None
        prompt = await chosen._build_async(messages, tokenizer, most, deadline, **options)
        encode_options = _encode_options(prompt, max_tokens)
        encode_options["keep_last"] = keep_last
        return await tokenizer.encode_async(prompt.text, deadline=deadline, **encode_options)

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
            raise RequestError(
                "continue_final_message needs add_generation_prompt to be false.",
                code="invalid_value",
                param="continue_final_message",
            )
        arguments = dict(template_kwargs or {})
        taken = sorted(arguments.keys() & (_NOT_FOR_REQUESTS | self._tokens.keys() | self._environment.globals.keys()))
        if taken:
            raise RequestError(
                f"chat_template_kwargs cannot set {', '.join(taken)}.",
                code="invalid_value",
                param="chat_template_kwargs",
            )
        arguments = {name: value for name, value in arguments.items() if name in self._reads}
        prepared = [self._forms.message(message) for message in in_words(messages, self._forms)]
        if continue_final_message:
            mark_end(prepared)
        written = {"documents": None, **arguments, "messages": prepared, "tools": list(tools) if tools else None}
        variables = {**self._tokens, **written, "add_generation_prompt": add_generation_prompt}
        with spending(budget):
            text = self._run(self._template, variables)
            breaks = [] if tokenizer is None else self._breaks(text, written, variables, tokenizer)
        if continue_final_message:
            text = _cut(text)
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


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(_shown, names)) or "none"


def _shown(name: str) -> str:
    return repr(name[:_MAX_NAME])


def _failure(message: str) -> RequestError:
    return RequestError(message, code="chat_template_error", param="messages")


def _cut(rendered: str) -> str:
    text = cut_at_end(rendered)
    if text is None:
        raise _failure("The chat template does not show the final message, so it cannot be continued.")
    return text


def _encode_options(prompt: _Prompt, max_tokens: int | None) -> EncodeOptions:
    return {
        "add_special_tokens": False,
        "parse_special": True,
        "breaks": prompt.breaks,
        "max_tokens": max_tokens,
    }


def _length(written: Sequence[Mapping[str, Any]]) -> int:
    """Number of characters that clients wrote, approximately."""
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
