"""Fields beyond a schema: named back in ``X-Ignored-Params``, or refused. Never dropped silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request

from app.errors import RequestError

IGNORED_HEADER = "x-ignored-params"
_MAX_NAME = 64
_MAX_NAMES = 32
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-]")

# Book-keeping of hosted services and hints: an answer without them is still the answer that was asked for.
_HARMLESS = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "prediction",
        "stream_options.include_obfuscation",
    }
)

# Fields that ask for something this server does not do, and the values with which they ask for nothing. Some are only
# here for the endpoint whose schema does not declare them.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "adapter_id": (),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "early_stopping": (False,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "grammar": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "max_completion_tokens": (),
    "modalities": (["text"],),
    "parse_special": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "watermark": (False,),
    "web_search_options": (),
}


def is_strict(request: Request, *, default: bool) -> bool:
    """Whether unknown fields are refused: the ``strict`` query parameter, or the server's setting without one.

    Raises:
        RequestError: 400, the parameter is neither true nor false.
    """
    given = request.query_params.get("strict")
    if given is None:
        return default
    if given.lower() not in ("true", "false", "1", "0"):
        raise RequestError("strict is true or false.", code="invalid_value", param="strict")
    return given.lower() in ("true", "1")


def ignored_headers(parts: Iterable[BaseModel], *, strict: bool) -> dict[str, str]:
    """Names the fields of a body's parts back that the answer will not heed. Raises as :func:`ignored_fields`."""
    return ignored_header([name for part in parts for name in ignored_fields(part, strict=strict)])


def ignored_fields(body: BaseModel, *, strict: bool) -> list[str]:
    """Names of the fields that the answer will not heed; nested ones as ``stream_options.x``, ``messages.content.x``.

    Args:
        strict: refuse fields that nobody knows.

    Raises:
        RequestError: 400, a field asks for what the server cannot do, or nobody knows it and ``strict``.
    """
    given = {name: value for name, value in _extras(body).items() if value is not None}
    ignored = [name for name, value in given.items() if _is_ignored(name, value, given)]
    unknown = [name for name in ignored if name not in _HARMLESS and name not in _UNSUPPORTED]
    if strict and unknown:
        name = unknown[0][:_MAX_NAME]
        raise RequestError(f"{name} is not a known parameter.", code="unknown_parameter", param=name)
    return ignored


def _extras(body: BaseModel) -> dict[str, Any]:
    extras = dict(body.model_extra or {})
    declared = vars(body)
    if (options := declared.get("stream_options")) is not None:
        extras |= _prefixed("stream_options", options)
    for message in declared.get("messages") or ():
        # A message's own extras go to the chat template; those of a content part go nowhere.
        for part in message.content if isinstance(message.content, list) else ():
            extras |= _prefixed("messages.content", part)
    return extras


def _prefixed(prefix: str, nested: BaseModel) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in (nested.model_extra or {}).items()}


def _is_ignored(name: str, value: Any, given: Mapping[str, Any]) -> bool:
    if name not in _UNSUPPORTED:
        return True
    if value in _UNSUPPORTED[name]:
        return False
    if name == "tools" and given.get("tool_choice") == "none":
        return True
    raise RequestError(f"{name} is not supported by this server.", code="unsupported_parameter", param=name)


def ignored_header(names: list[str]) -> dict[str, str]:
    """The response header that names ``names`` back, safe and bounded whatever they hold; none when there are none."""
    if not names:
        return {}
    shown = [_UNSAFE.sub("?", name[:_MAX_NAME]) for name in names[:_MAX_NAMES]]
    if len(names) > _MAX_NAMES:
        shown.append("...")
    return {IGNORED_HEADER: ", ".join(shown)}
