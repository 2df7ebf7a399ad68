"""Bodies that clients send: what chat and completions share.

A field declared here is honoured. Whatever else a body holds ends up in ``model_extra``, and ``app/api/extras.py``
decides whether that is refused or named back. ``null`` means absent everywhere, as OpenAI's SDKs send it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

MAX_STOP_LENGTH = 1024
MAX_TOKENS = 2**31 - 1
MAX_ITEMS = 1 << 16
"""Texts or lists in a list; the server's settings allow fewer of most."""
MAX_IDS = 1 << 20
"""Token ids in a list."""
MAX_LOGIT_BIAS = 1024
MAX_TEMPLATE_VARIABLES = 64

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
ParseSpecial = Annotated[
    bool | None,
    Field(
        description="Take control tokens that the text spells for what they say, as a prompt needs that the client "
        "rendered from a chat template. Default true; false keeps pasted text from posing as a turn of its own."
    ),
]
TimeLimit = Annotated[
    Annotated[float, Field(gt=0, le=1e9)] | None,
    Field(description="Seconds after which the request is given up; the server may allow less."),
]


def _bounded_bias(value: Any) -> Any:
    """Looks at the size first: entries are validated one by one, and each bad one makes an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIAS:
        raise PydanticCustomError("too_long", "has more than {most} entries", {"most": MAX_LOGIT_BIAS})
    return value


LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIAS),
    BeforeValidator(_bounded_bias),
]
# Lists stop at their first bad item: a body of a million bad ones must not make a million errors.
StopStrings = Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_ITEMS)]
TokenIdList = Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_IDS)]
TemplateVariables = Annotated[dict[str, Any], Field(max_length=MAX_TEMPLATE_VARIABLES)]


def text_or_list(value: Any) -> str:
    """Tag of a field that takes a string or a list: errors then speak of the form that was sent."""
    return "list" if isinstance(value, list) else "text"


class Body(BaseModel):
    """Typed strictly (``"16"`` is no number, ``true`` is no 1), open to unknown fields, no NaN or infinity."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())


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
