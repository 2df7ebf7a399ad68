"""The forms in which a prompt is given, and how each becomes token ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import RequestError
from app.serving.generation import Generator
from app.text.tokenizer import TextOptions


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids."""

    token_ids: list[int]
    text: str = ""
    """The prompt's text, where it was given as text or asked for."""
    offsets: list[int] | None = None
    """Where the tokens of the text begin in it, in characters, if asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """A text, taken as it is."""

    text: str
    add_special_tokens: bool = True
    """Let the tokenizer add BOS where the model wants it."""
    parse_special: bool = True
    """Take control tokens that the text spells for what they say."""
    keep_last: int | None = None
    """Keep this many of the last tokens alone."""
    with_offsets: bool = False

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
class TokenPrompt:
    """Token ids, taken as they are."""

    token_ids: list[int]
    with_text: bool = False
    """Make the text of the tokens too."""
    skip_special_tokens: bool = True
    """Leave control tokens out of that text."""

    async def encode(self, generator: Generator, max_tokens: int, deadline: float | None) -> EncodedPrompt:
        """The token ids, checked. Raises as :meth:`TextPrompt.encode`; 400 for ids that the model does not have."""
        token_ids = self.token_ids
        if len(token_ids) > max_tokens:
            message = f"prompt has {len(token_ids)} tokens, more than the {max_tokens} that fit."
            raise RequestError(message, code="context_length_exceeded", param="prompt")
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
    """With a ``role`` and a ``content`` each, as templates expect them."""
    add_generation_prompt: bool = True
    """Open the assistant's turn."""
    continue_final_message: bool = False
    """Go on with the last message."""
    template_kwargs: Mapping[str, Any] | None = None
    """Variables for the template."""

    async def encode(self, generator: Generator, max_tokens: int, deadline: float | None) -> EncodedPrompt:
        """Token ids of the rendered messages. Raises as :meth:`TextPrompt.encode`; 400 too when there is no template,
        or it refuses the messages."""
        token_ids = await generator.chat_template.encode_async(
            self.messages,
            generator.tokenizer,
            max_tokens=max_tokens,
            deadline=deadline,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.template_kwargs,
        )
        return EncodedPrompt(token_ids)


Prompt = TextPrompt | TokenPrompt | Conversation


def check_token_ids(param: str, token_ids: Collection[int], vocab_size: int) -> None:
    """Refuses ids that are not below ``vocab_size``. Raises :class:`RequestError` 400."""
    if token_ids and max(token_ids) >= vocab_size:
        message = f"{param}: token ids go from 0 to {vocab_size - 1}, not {max(token_ids)}."
        raise RequestError(message, code="invalid_value", param=param)
