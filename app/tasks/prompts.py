"""The forms in which a prompt is given, and how each becomes token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import RequestError, TooManyTokensError
from app.serving.generator import Generator
from app.text.parsers.reply import ReplyParser
from app.text.template_forms import texts
from app.text.tokenizer import TextOptions
from app.text.told_tools import with_short_ids


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids."""

    token_ids: list[int]
    text: str = ""
    """The prompt's text, where it was given as text or asked for."""
    offsets: list[int] | None = None
    """Where the tokens of the text begin in it, in characters, if asked for."""
    constraint: str = ""
    """What binds the answer (:attr:`GenerationRequest.constraint`)."""
    new_parser: Callable[[], ReplyParser] | None = None
    """Makes what tells the parts of an answer apart."""
    text_span: tuple[int, int] | None = None
    """Where the text's tokens begin and end among the token ids; None: they are all of them."""
    ends: tuple[int, ...] = ()
    """Tokens that end an answer to it, besides the model's own end of text."""
    prediction_token_ids: list[int] = field(default_factory=list)
    """What the client thinks the answer will be like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """A text, taken as it is."""

    text: str
    add_special_tokens: bool = True
    """Let the tokenizer add BOS where the model wants it."""
    parse_special: bool = True
    """Take control tokens that the text spells for what they say."""
    keep_last: int | None = None
    """Number of tokens that are kept, the last ones; None keeps all."""
    with_offsets: bool = False
    """Note where each token begins in the text."""

    async def encode(self, generator: Generator, max_tokens: int, deadline: float | None) -> EncodedPrompt:
        """Token ids of the text, made off the event loop when it is long.

        Args:
            max_tokens: most tokens that are of use.
            deadline: instant of ``time.monotonic`` up to which they are of use.

        Raises:
            RequestError: 400, the text is too long or not valid Unicode; 504, the deadline passed.
        """
        tokenizer = generator.tokenizer
        options: TextOptions = {
            "add_special_tokens": self.add_special_tokens,
            "parse_special": self.parse_special,
            "max_tokens": max_tokens,
        }
        if self.with_offsets:
            encoded = await tokenizer.encode_with_offsets_async(self.text, deadline=deadline, **options)
            return EncodedPrompt(encoded.token_ids, self.text, encoded.offsets)
        token_ids = await tokenizer.encode_async(self.text, deadline=deadline, keep_last=self.keep_last, **options)
        return EncodedPrompt(token_ids, self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillPrompt:
    """A text before and a text behind the answer, for a model that was trained to fill in what is between them."""

    prefix: str
    suffix: str
    add_special_tokens: bool = True
    """Let the tokenizer add BOS where the model wants it."""
    parse_special: bool = False
    """Take control tokens that the texts spell for what they say."""
    with_offsets: bool = False
    """Note where each token begins in the prefix."""
    suffix_name: str = "suffix"
    """Name that the client has for the suffix."""

    async def encode(self, generator: Generator, max_tokens: int, deadline: float | None) -> EncodedPrompt:
        """Token ids of both texts, with the model's own tokens around them; the prompt's text is the prefix.

        Raises as :meth:`TextPrompt.encode`; 400 too for a model that has no such tokens.
        """
        if generator.infill is None:
            message = f"{self.suffix_name} is not supported by this model: its tokenizer has no tokens to fill in the "
            message += "middle with."
            raise RequestError(message, code="unsupported_parameter", param=self.suffix_name)
        encoded = await generator.infill.encode(
            self.prefix,
            self.suffix,
            add_special_tokens=self.add_special_tokens,
            parse_special=self.parse_special,
            with_offsets=self.with_offsets,
            max_tokens=max_tokens,
            deadline=deadline,
        )
        # A tokenizer may have tokens that the model's logits do not reach; they never come.
        ends = tuple(token_id for token_id in generator.infill.ends if token_id < generator.vocab_size)
        return EncodedPrompt(encoded.token_ids, self.prefix, encoded.offsets, text_span=encoded.span, ends=ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token ids, taken as they are."""

    token_ids: list[int]
    with_text: bool = False
    """Make the text of the tokens too."""
    skip_special_tokens: bool = True
    """Leave control tokens out of that text."""
    keep_last: int | None = None
    """Number of tokens that are kept, the last ones; None keeps all."""

    async def encode(self, generator: Generator, max_tokens: int, deadline: float | None) -> EncodedPrompt:
        """The token ids, checked. Raises as :meth:`TextPrompt.encode`; 400 for ids that the model does not have."""
        token_ids = self.token_ids if self.keep_last is None else self.token_ids[-self.keep_last :]
        if len(token_ids) > max_tokens:
            raise TooManyTokensError(max_tokens, count=len(token_ids), param="prompt")
        check_token_ids("prompt", token_ids, generator.vocab_size)
        text = ""
        if self.with_text:
            text = await generator.tokenizer.decode_async(
                token_ids, skip_special_tokens=self.skip_special_tokens, deadline=deadline
            )
        return EncodedPrompt(token_ids, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages, of which the model's chat template makes a prompt."""

    messages: Sequence[Mapping[str, Any]]
    """Messages with a ``role`` and a ``content`` each, as templates expect them."""
    add_generation_prompt: bool = True
    """Open the assistant's turn."""
    continue_final_message: bool = False
    """Go on with the last message."""
    template_kwargs: Mapping[str, Any] | None = None
    """Variables for the template."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Tools that the template tells the model of, as OpenAI has them: ``{"type": "function", "function": {...}}``."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that the client has for these variables, where they differ."""
    template: str | None = None
    """Name of one of the model's templates, if not the usual one."""
    keep_last: int | None = None
    """Number of tokens that are kept, the last ones; None keeps all."""
    room: int | None = None
    """Tokens to leave for the answer, up to half of all: the oldest turns are left out until the others leave them, as
    far as the last one. None leaves no turn out."""

    async def encode(self, generator: Generator, max_tokens: int, deadline: float | None) -> EncodedPrompt:
        """Token ids of the rendered messages. Raises as :meth:`TextPrompt.encode`; 400 too when there is no template,
        or it refuses the messages."""
        if self.room is not None:
            shortened = await self._shortened(max_tokens - min(self.room, max_tokens // 2), generator, deadline)
            return await shortened.encode(generator, max_tokens, deadline)
        messages, tools = self.messages, self.tools
        if generator.reply_format.short_ids:
            messages = with_short_ids(messages)
        if tools and generator.reply_format.calls.described:
            messages, tools = generator.chat_template.telling(messages, tools, template=self.template), ()
        token_ids = await generator.chat_template.encode_async(
            messages,
            generator.tokenizer,
            max_tokens=max_tokens,
            keep_last=self.keep_last,
            deadline=deadline,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.template_kwargs,
            template=self.template,
            tools=tools,
        )
        return EncodedPrompt(token_ids)

    def last_text(self) -> str:
        """Text of the last message."""
        content = self.messages[-1].get("content") if self.messages else None
        return content if isinstance(content, str) else "\n".join(texts(content))

    async def _shortened(self, max_tokens: int, generator: Generator, deadline: float | None) -> Conversation:
        """The conversation from the oldest of its user's turns with which it fits; what stands before the first one, a
        system's message, stays."""
        starts = [place for place, message in enumerate(self.messages) if message["role"] == "user"] or [0]
        low, high = 0, len(starts) - 1
        while True:
            middle = (low + high) // 2
            kept = [*self.messages[: starts[0]], *self.messages[starts[middle] :]]
            conversation = dataclasses.replace(self, messages=kept, room=None)
            if low == high:
                return conversation
            try:
                fits = len((await conversation.encode(generator, max_tokens, deadline)).token_ids) <= max_tokens
            except TooManyTokensError:
                fits = False
            low, high = (low, middle) if fits else (middle + 1, high)


Prompt = TextPrompt | InfillPrompt | TokenPrompt | Conversation


def unread_variables(prompt: Prompt, generator: Generator) -> list[str]:
    """A conversation's variables that the chat template does not read, tools among them, by the client's names."""
    if not isinstance(prompt, Conversation):
        return []
    told = prompt.tools and not generator.reply_format.calls.described  # otherwise a message tells of them
    given = [*(prompt.template_kwargs or ()), *(["tools"] if told else [])]
    unread = generator.chat_template.unread(given, template=prompt.template, tools=prompt.tools)
    return [prompt.names.get(name, name) for name in unread]


def check_token_ids(param: str, token_ids: Collection[int], vocab_size: int) -> None:
    """Refuses ids that are not below ``vocab_size``. Raises :class:`RequestError` 400."""
    if token_ids and max(token_ids) >= vocab_size:
        message = f"{param}: token ids go from 0 to {vocab_size - 1}, not {max(token_ids)}."
        raise RequestError(message, code="invalid_value", param=param)
