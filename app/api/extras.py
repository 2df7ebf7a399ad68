"""Fields beyond a schema: named back in ``X-Ignored-Params``, or refused. Never dropped silently."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request

from app.api.fields import Part
from app.errors import RequestError

IGNORED_HEADER = "x-ignored-params"
_MAX_NAME = 64
_MAX_NAMES = 32
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-]")

# Book-keeping of hosted services, and hints that applications send whatever the model, with the values that ask for
# nothing: an answer without them is still the answer that was asked for.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "keep_alive": (),
    "metadata": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": (),
    "store": (),
    "stream_options.include_obfuscation": (),
    "typical_p": (1,),
    "user": (),
    "verbosity": ("medium",),
}

# Fields that bind the answer to a form, where the endpoint's schema does not have them, and the values with which they
# do not.
_CONSTRAINTS: dict[str, tuple[Any, ...]] = {
    "ebnf": ("",),
    "format": ("",),
    "grammar": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "guided_json": (),
    "guided_json_object": (False,),
    "guided_regex": ("",),
    "json_schema": (),
    "regex": ("",),
    "response_format": ({}, {"type": "text"}),
    "response_schema": (),
    "stop_regex": ("", []),
    "structural_tag": (),
    "structured_outputs": (),
}

# Fields that ask for something this server does not do, and the values with which they ask for nothing. Some are only
# here for the endpoint whose schema does not declare them.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = _CONSTRAINTS | {
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
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mcp_servers": ([],),
    "modalities": (["text"],),
    "parse_special": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "watermark": (False,),
    "web_search_options": (),
}

# Objects of further fields, as clients of other servers nest them: the SDKs' own argument sent as it is, NVIDIA's
# extensions, the parameters of SGLang's, Ollama's and TGI's own protocols. What is in them is not heeded either way.
_NESTING = frozenset(
    {"extra_body", "extra_params", "generation_config", "nvext", "options", "parameters", "sampling_params"}
)
_MAX_DEPTH = 4

# Bounds of an answer by names that the endpoint does not have. A prompt that is only tokenised is the same without.
_MOST_TOKENS = frozenset(
    {
        "max_completion_tokens",
        "max_length",
        "max_new_tokens",
        "max_output_tokens",
        "max_tokens",
        "max_tokens_to_sample",
        "n_predict",
        "num_predict",
    }
)


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


def ignored_fields(body: BaseModel, *, strict: bool, generates: bool = True) -> list[str]:
    """Names of the fields that the answer will not heed; nested ones as ``stream_options.x``, ``messages.content.x``,
    ``extra_body.x``.

    Args:
        strict: refuse fields that nobody knows.
        generates: the answer is generated text, whose length a field may bound.

    Raises:
        RequestError: 400, a field asks for what the server cannot do, or nobody knows it and ``strict``.
    """
    given = [field for field in _extras(body) if field.value is not None]
    ignored = [field for field in given if _is_ignored(field, given, generates=generates)]
    if strict:
        _refuse_unknown([field.path for field in ignored if not _is_known(field.name)])
    return [field.path for field in ignored]


def unheeded(names: Sequence[str], *, strict: bool) -> list[str]:
    """Further names of fields that the answer will not heed. Raises :class:`RequestError` 400 as for other fields."""
    if strict:
        _refuse_unknown([name for name in names if not _is_known(name)])
    return list(names)


def _refuse_unknown(names: Sequence[str]) -> None:
    if names:
        name = names[0][:_MAX_NAME]
        raise RequestError(f"{name} is not a known parameter.", code="unknown_parameter", param=name)


class _Field(NamedTuple):
    path: str
    """Name with the names of the objects that it is in."""
    name: str
    """Name by which it is known."""
    value: Any


def _extras(body: BaseModel) -> Iterator[_Field]:
    """Fields of a body that its schema does not declare."""
    yield from _flat(body.model_extra or {}, "", _MAX_DEPTH)
    yield from _of_parts(body)
    declared = vars(body)
    if (options := declared.get("stream_options")) is not None:
        yield from _of_part("stream_options", options)
    for message in declared.get("messages") or ():
        # A message's own extras go to the chat template; those of a content part go nowhere.
        if not isinstance(message, Part):
            for part in message.content if isinstance(message.content, list) else ():
                yield from _of_part("messages.content", part)


def _flat(fields: Mapping[str, Any], prefix: str, depth: int) -> Iterator[_Field]:
    for name, value in fields.items():
        if name in _NESTING and isinstance(value, dict) and value and depth:
            yield from _flat(value, f"{prefix}{name}.", depth - 1)
        else:
            yield _Field(prefix + name, name, value)


def _of_parts(body: BaseModel, prefix: str = "") -> Iterator[_Field]:
    """Those of the objects within a body, and within these."""
    for name, value in body:
        parts = value if isinstance(value, list) else [value]
        for part in parts if parts and isinstance(parts[0], Part) else ():
            yield from _of_part(prefix + name, part)
            yield from _of_parts(part, f"{prefix}{name}.")


def _of_part(prefix: str, nested: BaseModel) -> Iterator[_Field]:
    for name, value in (nested.model_extra or {}).items():
        yield _Field(f"{prefix}.{name}", f"{prefix}.{name}", value)


def _is_known(name: str) -> bool:
    return name in _HARMLESS or name in _UNSUPPORTED or name in _MOST_TOKENS


def _is_ignored(field: _Field, given: Sequence[_Field], *, generates: bool) -> bool:
    """Whether a field is named back, not passed over as one that asks for nothing. Raises :class:`RequestError` 400."""
    path, name, value = field
    if name in _MOST_TOKENS and generates:
        raise RequestError(f"{path} is not supported in this place.", code="unsupported_parameter", param=path)
    if name not in _UNSUPPORTED:
        return value not in _HARMLESS.get(name, ())
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if each is not None}
    if value in _UNSUPPORTED[name]:
        return False
    if path == "tools" and any(each.path == "tool_choice" and each.value == "none" for each in given):
        return True
    raise RequestError(f"{path} is not supported by this server.", code="unsupported_parameter", param=path)


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The response header that names ``names`` back, safe and bounded whatever they hold; none when there are none."""
    if not names:
        return {}
    names = list(dict.fromkeys(names))
    shown = [_UNSAFE.sub("?", name[:_MAX_NAME]) for name in names[:_MAX_NAMES]]
    if len(names) > _MAX_NAMES:
        shown.append("...")
    return {IGNORED_HEADER: ", ".join(shown)}
