"""What chat and completions both take."""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Discriminator, Field, Tag

from app.api.fields import (
    MAX_ITEMS,
    MAX_STOP_LENGTH,
    MAX_TOKENS,
    Body,
    LogitBias,
    StopStrings,
    TimeLimit,
    TokenId,
    text_or_list,
)
from app.api.forms import FormFields


class PromptLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probability of a token at a place of the prompt, of the raw logits."""

    logprob: float
    rank: int | None
    """1 for the most likely token."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each token of a prompt that token and the most likely ones there, by id; null for the first."""


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool | None = Field(None, description="End with a chunk that has the usage and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="Put the usage so far in every chunk.")


_Stop = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
MostTokens = Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None


class GenerationBody(FormFields):
    """Fields of both endpoints. Defaults that are not given come from the model's generation config."""

    model: str | None = Field(None, description="Name of the served model; may be left out.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="Choices a prompt. Default 1.")
    best_of: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Choices made for each prompt, of which the `n` with the most likely tokens are the answer. "
        "More than `n` not in streams.",
    )
    max_completion_tokens: MostTokens = Field(
        None, description="Most tokens of an answer; -1: all that fit the context, as in chat when absent."
    )
    max_tokens: MostTokens = Field(
        None,
        description="The same, if `max_completion_tokens` is absent. Completions have 16 when both are, and may have 0 "
        "with `echo`, to score a prompt.",
    )
    max_new_tokens: MostTokens = Field(None, description="The same under another name, if those before are absent.")
    n_predict: MostTokens = Field(None, description="The same under another name, if those before are absent.")

    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0 is greedy.")
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
        Annotated[Annotated[_Stop, Tag("text")] | Annotated[StopStrings, Tag("list")], Discriminator(text_or_list)]
        | None
    ) = Field(
        None,
        description="Text that ends the answer; it is not part of it. A control token's text means that token as well. "
        "An empty text asks for none.",
    )
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = Field(
        None, description="The only tokens that may come; an empty list asks for nothing."
    )
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="Leave control tokens out of the text. Default true.")
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Report each prompt token's log-probability, with so many alternatives. Not in streams.",
    )
    return_token_ids: bool | None = Field(None, description="Report the token ids of prompt and answer.")
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Name tokens of log-probabilities by their ids, as `token_id:42`."
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep the last tokens of a prompt, so many. Not with `echo`."
    )
    timeout: TimeLimit = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(None, description="Lower runs first.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Cached prompt prefixes are shared only among requests with the same salt."
    )
