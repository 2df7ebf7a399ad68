"""``/tokenize``, ``/detokenize``, ``/tokenizer_info``: what they take, what they answer."""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Field

from app.api.fields import Body, ParseSpecial, TemplateVariables, TokenIdList
from app.api.openai.schemas.chat import MAX_FUNCTIONS, FunctionTool, Messages


class TokenizeBody(Body):
    """A text or a conversation."""

    model: str | None = Field(None, description="Name of the served model; may be left out.")
    prompt: str | None = Field(None, description="A text.")
    messages: Messages | None = Field(None, description="A conversation.")
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer add BOS where the model wants it and the text does not begin with it. "
        "Default true. A conversation has the special tokens of its template and no others.",
    )
    parse_special: ParseSpecial = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_FUNCTIONS)] | None = Field(
        None, description="Tools that the chat template tells the model of."
    )
    add_generation_prompt: bool | None = Field(None, description="Open the assistant's turn. Default true.")
    continue_final_message: bool | None = Field(None, description="Leave the last message's turn open instead.")
    chat_template: str | None = Field(
        None, description="Name of one of the model's chat templates, if not the usual one."
    )
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Variables for the model's chat template.")
    reasoning_effort: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="The variable of this name, where the chat template reads one."
    )


class DetokenizeBody(Body):
    """Token ids."""

    model: str | None = Field(None, description="Name of the served model; may be left out.")
    tokens: TokenIdList


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids of a text or conversation."""

    tokens: list[int]
    count: int
    max_model_len: int
    """Most tokens of prompt and answer together."""


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Text of token ids, control tokens included."""

    prompt: str


class TokenizerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What clients need to build prompts of their own."""

    model: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    vocab_size: int
    """Ids that have a text; the model's logits may be wider."""
    chat_template: str | None
    """Jinja source."""
