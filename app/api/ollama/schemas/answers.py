"""What Ollama's protocol answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class OllamaToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class OllamaLogprob(OllamaToken, frozen=True, kw_only=True):
    """A token of the answer."""

    top_logprobs: list[OllamaToken] | UnsetType = UNSET
    """When asked for."""


class OllamaCalled(msgspec.Struct, frozen=True, kw_only=True):
    """Which tool is called, and with what."""

    index: int
    name: str
    arguments: dict[str, Any]
    """Of a call that the most tokens cut short, as much as can be read of it."""


class OllamaToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool."""

    id: str
    function: OllamaCalled


class OllamaReply(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's turn, or a piece of it."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaToolCall] | UnsetType = UNSET


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of every answer and every line. Those behind ``done`` are the last line's alone."""

    model: str
    created_at: str
    """When the line was made."""
    done: bool
    done_reason: str | UnsetType = UNSET
    """``stop``, ``length`` or, where nothing was asked, ``load``."""
    total_duration: int | UnsetType = UNSET
    """Nanoseconds, as all durations."""
    load_duration: int | UnsetType = UNSET
    """None: the model is loaded."""
    prompt_eval_count: int | UnsetType = UNSET
    """Tokens of the prompt, those from the prefix cache included."""
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    """Tokens of the answer."""
    eval_duration: int | UnsetType = UNSET
    logprobs: list[OllamaLogprob] | UnsetType = UNSET
    """When asked for."""


class OllamaChat(_Line, frozen=True, kw_only=True):
    """Answer of ``/api/chat``, or a line of it."""

    message: OllamaReply


class OllamaGenerated(_Line, frozen=True, kw_only=True):
    """Answer of ``/api/generate``, or a line of it."""

    response: str
    thinking: str | UnsetType = UNSET


class OllamaDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of model it is."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """A served name."""

    name: str
    model: str
    modified_at: str
    size: int
    """Bytes of the weights in memory."""
    digest: str
    """Changes when the same request may be answered otherwise."""
    details: OllamaDetails


class OllamaModels(msgspec.Struct, frozen=True):
    """All served names."""

    models: list[OllamaModel]


class OllamaRunning(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is loaded."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    """Far away: models stay."""
    size_vram: int
    context_length: int


class OllamaProcesses(msgspec.Struct, frozen=True):
    """All models that are loaded."""

    models: list[OllamaRunning]


class OllamaShown(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model."""

    modelfile: str
    parameters: str
    """How it samples by default."""
    template: str
    """Jinja source, not a template of Ollama's."""
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(msgspec.Struct, frozen=True):
    """The version of Ollama whose protocol this is, then the server's own."""

    version: str


class OllamaError(msgspec.Struct, frozen=True):
    """Body of every answer that is not a success; also the last line of a stream that failed."""

    error: str
