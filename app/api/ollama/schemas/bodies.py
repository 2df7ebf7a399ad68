"""``/api/chat``, ``/api/generate`` and ``/api/show``: what they take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.api.fields import MAX_ITEMS, MAX_STOP_LENGTH, MAX_TOKENS, Body, Part, StopStrings, text_or_list

MAX_MESSAGES = 8192
MAX_TOOLS = 1024
MAX_CALLS = 4096
"""Calls in a message."""

_Stop = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
_AnyObject = Annotated[dict[str, Any], Field(max_length=MAX_ITEMS)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class OllamaOptions(Part):
    """How to sample. Defaults that are not given come from the model's generation config, not from Ollama."""

    num_predict: Annotated[int, Field(ge=-2, le=MAX_TOKENS)] | None = Field(
        None, description="Most tokens of the answer, fewer where fewer fit; 0 or less: all that fit, as when absent."
    )
    num_ctx: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Most tokens of prompt and answer together. More than the server has are refused."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 is greedy.")
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="-1 or 0 keeps every token.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0 is greedy.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(
        None, description="1 changes nothing. Of all tokens before."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: (
        Annotated[Annotated[_Stop, Tag("text")] | Annotated[StopStrings, Tag("list")], Discriminator(text_or_list)]
        | None
    ) = None


class OllamaBody(Body):
    """Fields of both ways to generate."""

    model: str | None = Field(None, description="Name of the served model, with `:latest` or without.")
    stream: bool | None = Field(None, description="Answer in lines, the default.")
    options: OllamaOptions | None = None
    format: _AnyObject | str | None = Field(None, description="Binds the answer to JSON: `json`, or a JSON Schema.")
    think: bool | Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="Whether the model thinks, where its template can be told; a text is how much, the template's "
        "variable `reasoning_effort`.",
    )
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(None, description="Alternatives reported for each token.")
    keep_alive: Annotated[str, Field(max_length=64)] | float | None = Field(
        None,
        description="How long the model stays loaded without work: seconds, or a text such as `5m`; -1 is for ever. "
        "Where models always stay, it is named back.",
    )


class OllamaFunction(Part):
    """What the model is told of a tool."""

    name: Name
    description: str | None = None
    parameters: _AnyObject | None = Field(None, description="JSON Schema of the arguments, an object's.")


class OllamaTool(Part):
    """A tool that the client runs."""

    type: Literal["function"] | None = None
    function: OllamaFunction


class CalledFunction(Part):
    """Which tool was called, and with what."""

    name: Name
    arguments: _AnyObject | None = None
    index: int | None = None


class OllamaCall(Part):
    """A call that the assistant made."""

    id: Annotated[str, Field(max_length=256)] | None = None
    function: CalledFunction


class OllamaMessage(Part):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = Field(None, description="The assistant's thought.")
    tool_calls: Annotated[list[OllamaCall], Field(fail_fast=True, max_length=MAX_CALLS)] | None = None
    tool_name: Name | None = Field(None, description="The tool whose result this is.")
    tool_call_id: Annotated[str, Field(max_length=256)] | None = Field(None, description="The call that led to it.")


class OllamaChatBody(OllamaBody):
    """A conversation to go on with. Without messages: a question whether the model is loaded."""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[OllamaTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None


class OllamaGenerateBody(OllamaBody):
    """A question to answer, or with ``raw`` a text to go on with. Without either: whether the model is loaded."""

    prompt: str | None = None
    system: str | None = Field(None, description="Text for the system's turn.")
    raw: bool | None = Field(None, description="Take the prompt as it is, without the chat template.")
    suffix: str | None = Field(
        None, description="What follows the answer, for models that were trained to fill in what is between."
    )


class OllamaShowBody(Body):
    """A model's name."""

    model: str | None = None
    name: str | None = Field(None, description="The same under its older name.")


class OllamaEmbedBody(Body):
    """Texts to encode."""

    model: str | None = None
