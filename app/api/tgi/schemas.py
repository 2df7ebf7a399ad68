"""``/generate``, ``/generate_stream``, ``/`` and ``/info``, in the shapes of text-generation-inference."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from app.api.fields import MAX_TOKENS, Body, JsonObject, ParseSpecial, StopStrings, TimeLimit

DEFAULT_MAX_NEW_TOKENS = 100


class GenerateParameters(Body):
    """How to go on. Nothing comes from the model's own defaults, unlike with the other endpoints."""

    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description=f"Most tokens of the answer, {DEFAULT_MAX_NEW_TOKENS} when absent."
    )
    do_sample: bool | None = Field(
        None,
        description="Sample; temperature, top_k and top_p ask for it as well. Else the answer is greedy.",
    )
    temperature: Annotated[float, Field(gt=0, le=100)] | None = Field(None, description="1 changes nothing.")
    top_k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(None, description="1 changes nothing.")
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    stop: StopStrings | None = Field(
        None,
        description="Text that ends the answer, and is the end of it. A control token's text means that token as well, "
        "which stays out of the text.",
    )
    parse_special: ParseSpecial = None
    truncate: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep the last tokens of the inputs, so many."
    )
    return_full_text: bool | None = Field(None, description="Put the inputs before the generated text.")
    details: bool | None = Field(None, description="Report tokens, log-probabilities and why the answer ended.")
    decoder_input_details: bool | None = Field(
        None, description="Report the tokens of the inputs too, with log-probabilities. Not with streams."
    )
    grammar: JsonObject | None = Field(
        None,
        description="What the answer has to match: a `type` (`json`, `json_schema` or `regex`) and a `value`.",
    )
    top_n_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Report the likeliest tokens at each place of the answer."
    )


class GenerateBody(Body):
    """A text to go on with."""

    inputs: Annotated[str, Field(min_length=1)]
    model: str | None = Field(None, description="Any name: these routes have one model, and clients make one up.")
    parameters: GenerateParameters | None = None
    timeout: TimeLimit = None


class RootBody(GenerateBody):
    """The same for ``/``, where the body says which way to answer."""

    stream: bool | None = Field(None, description="Answer as `/generate_stream` does.")


class PrefillToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token of the inputs."""

    id: int
    text: str
    logprob: float | None
    """Null for the first."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token of the answer; the texts of those that are not special make up the generated text."""

    id: int
    text: str
    """What the token adds to the text; of a control token its name."""
    logprob: float
    special: bool


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer came about."""

    finish_reason: str
    """``length``, ``eos_token`` or ``stop_sequence``."""
    generated_tokens: int
    seed: int | None
    """Null when nothing was sampled."""
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(msgspec.Struct, frozen=True, kw_only=True):
    """How a streamed answer came about."""

    finish_reason: str
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One token of a stream."""

    index: int
    """From 1."""
    token: Token
    top_tokens: list[Token] | UnsetType = UNSET
    generated_text: str | None = None
    """The whole text, in the last event alone."""
    details: StreamDetails | None = None
    """In the last event, when asked for."""


class FlatError(msgspec.Struct, frozen=True):
    """Body of every answer that is not a success; also the last event of a stream that failed."""

    error: str
    error_type: str
    """``validation``, ``generation``, ``overloaded``, ``unavailable``, ``authentication``, ``permission`` or
    ``internal``."""


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What is served, and its limits."""

    model_id: str
    model_dtype: str
    model_device_type: str
    model_via: str | None = None
    """The library that computes the model, slowly: `transformers`; null: the server itself does."""
    model_pipeline_tag: Literal["text-generation"] = "text-generation"
    max_concurrent_requests: int
    """Running and waiting ones; more are answered 429."""
    max_best_of: int = 1
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    """Most tokens of inputs and answer together."""
    max_client_batch_size: int = 1
    router: str = "tuili"
    version: str
