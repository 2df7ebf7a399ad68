"""``/v1/completions``: what it takes, what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Discriminator, Field, Tag

from app.api.fields import MAX_ITEMS, ParseSpecial, TokenIdList
from app.api.openai.schemas.generation import GenerationBody, PromptLogprobs
from app.api.openai.schemas.usage import Usage


def _prompt_form(value: Any) -> str:
    if not isinstance(value, list):
        return "text"
    if value and isinstance(value[0], list):
        return "id_lists"
    return "texts" if value and isinstance(value[0], str) else "ids"


TokenIds = Annotated[TokenIdList, Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS), Tag("texts")]
    | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS), Tag("id_lists")],
    Discriminator(_prompt_form),
]


class CompletionBody(GenerationBody):
    """Text, or token ids, to go on with."""

    prompt: Prompt = Field(description="A text, several texts, token ids, or several lists of token ids.")
    suffix: str | None = Field(
        None,
        description="Text behind the answer, which fills in what is between each prompt and it. For models that have "
        "tokens for that, and prompts that are texts. Control tokens that prompt and suffix spell stay text, unless "
        "`parse_special` is true.",
    )
    echo: bool | None = Field(
        None, description="Repeat the prompt before the answer; of a prompt with a suffix, what is before the gap."
    )
    logprobs: Annotated[int, Field(ge=0)] | None = Field(None, description="Alternatives reported for each token.")
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer add BOS where the model wants it and the text does not begin with it. "
        "Token ids are always taken as they are.",
    )
    parse_special: ParseSpecial = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Parallel lists, an element a token; log-probabilities of the raw logits."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    """Null for a prompt's first token."""
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]
    """The most likely tokens and always the actual one too; null where the log-probability is."""


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or what a chunk adds to it."""

    index: int
    """Prompt index * n + choice."""
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    """``stop`` or ``length``; null in a stream until the answer's last chunk."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """When asked for."""
    token_ids: list[int] | UnsetType = UNSET
    """When asked for; in a stream those of the chunk."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """When asked for; in a stream with the answer's first chunk."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, and also each event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    """Empty in the chunk that carries the usage."""
    usage: Usage | UnsetType | None = UNSET
