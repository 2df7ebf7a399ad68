"""Kinds of values that settings have, how texts become such values, and what they may be."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field
from pydantic_settings.sources import NoDecode

from app.contract.config import ADAPTER_NAME
from app.duration import read_duration
from app.keys import ApiKey, parse_keys
from app.quant.formats import QUANTIZATIONS

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.-]+(:\d+)?|[a-z][a-z0-9+.-]*://\[[0-9A-Fa-f:]+\](:\d+)?")
_HOST = re.compile(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SAMPLING: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (0, 1 << 30),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
}
"""Fields that a model may recommend, and their bounds."""
# Nothing is sensible beyond these bounds: a slip of the finger should be told, not allocated.
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
BatchSize = Annotated[int, Field(ge=1, le=1 << 18)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Bytes = Annotated[ByteSize, Field(gt=0, lt=1 << 60)]


def _named_alone(given: Any) -> Any:
    return {"model": given} if isinstance(given, str) else given


ModelEntry = Annotated[dict[str, Any], BeforeValidator(_named_alone)]
"""One of several models: its name, or that and settings of its own."""


def _read_duration(given: Any) -> Any:
    return read_duration(given) if isinstance(given, str | float | int) and not isinstance(given, bool) else given


Duration = Annotated[float, BeforeValidator(_read_duration)]


def _one_of_the_formats(value: str) -> str:
    if value not in QUANTIZATIONS:
        raise ValueError(f"use one of {', '.join(QUANTIZATIONS)}")
    return value


Quantization = Annotated[str, AfterValidator(_one_of_the_formats)]
"""Asks for one of :class:`app.quant.formats.WeightFormat`."""


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Models = Annotated[tuple[ModelEntry, ...], NoDecode, BeforeValidator(_split)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError("an origin is SCHEME://HOST[:PORT] and nothing behind it, or *")
    return value


Origins = Annotated[Names, AfterValidator(_origins)]


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for host in value:
        if not _HOST.fullmatch(host):
            raise ValueError("a host is a name without scheme and port, or *")
    return value


Hosts = Annotated[Names, AfterValidator(_hosts)]


def _adapters_of_a_file(value: Any) -> Any:
    return tuple(f"{name}={path}" for name, path in value.items()) if isinstance(value, dict) else _split(value)


def _adapters(value: tuple[str, ...]) -> tuple[str, ...]:
    names = [entry.partition("=")[0] for entry in value]
    for entry, name in zip(value, names, strict=True):
        if not entry.partition("=")[2] or not re.fullmatch(ADAPTER_NAME, name):
            raise ValueError("an adapter is NAME=PATH, the name of letters, digits and any of . _ - / : @ +")
    if len(set(names)) < len(names):
        raise ValueError("two adapters have the same name")
    return value


Adapters = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_adapters_of_a_file), AfterValidator(_adapters)]
"""NAME=PATH of each; in a file also a mapping of names to paths."""


def _sampling_from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = () if value == "none" else _split(value)
    return {name.strip(): _number(text) for name, _, text in (pair.partition("=") for pair in pairs)}


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _sampling(value: dict[str, int | float]) -> dict[str, int | float]:
    for name, number in value.items():
        if name not in _SAMPLING:
            raise ValueError(f"{name or 'nothing'} is not one of {', '.join(_SAMPLING)}")
        low, high = _SAMPLING[name]
        if not low <= number <= high:
            raise ValueError(f"{name} is from {low:g} to {high:g}")
        if name == "top_k" and not isinstance(number, int):
            raise ValueError("top_k is a whole number")
    return value


Sampling = Annotated[dict[str, int | float], NoDecode, BeforeValidator(_sampling_from_text), AfterValidator(_sampling)]


def _read_keys(value: Any) -> Any:
    entries = _split(value)
    if not isinstance(entries, tuple | list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("keys are texts")  # not shown: what is no text may still hold a key
    return parse_keys(entries)


Keys = Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_read_keys)]
