"""What chat and completions both take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from app.api.fields import (
    MAX_ITEMS,
    MAX_TOKENS,
    Body,
    LogitBias,
    StopString,
    StopStrings,
    TimeLimit,
    TokenId,
    text_or_list,
)


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool | None = Field(None, description="End with a chunk that has the usage and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="Put the usage so far in every chunk.")


class GenerationBody(Body):
    """Fields of both endpoints. Defaults that are not given come from the model's generation config."""

    model: str | None = Field(None, description="Name of the served model; may be left out.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="Choices a prompt. Default 1.")

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="-1 or 0 keeps every token.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(None, description="1 changes nothing.")
    logit_bias: LogitBias | None = Field(
        None, description="Token id (as a string) to a value that is added to its logit."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="Same seed, same text, whatever else the server does."
    )

    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        None, description="No end of text and no stop before so many tokens."
    )
    stop: (
        Annotated[Annotated[StopString, Tag("text")] | Annotated[StopStrings, Tag("list")], Discriminator(text_or_list)]
        | None
    ) = Field(
        None,
        description="Text that ends the answer; it is not part of it. A control token's text means that token as well.",
    )
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="Leave control tokens out of the text. Default true.")
    timeout: TimeLimit = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(None, description="Lower runs first.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Cached prompt prefixes are shared only among requests with the same salt."
    )
