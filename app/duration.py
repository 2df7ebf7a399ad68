"""How long a model stays loaded, as settings and clients write it: seconds, or a text with units as Ollama has them."""

from __future__ import annotations

import math
import re

FOREVER = math.inf
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_MAX_LENGTH = 64


def read_duration(value: str | float) -> float:
    """Seconds of a duration: a number of them, or parts with units (``5m``, ``1h30m``, ``300ms``).

    Negative ones last for ever.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        seconds = _read_text(value.strip() if len(value) <= _MAX_LENGTH else "")
    if math.isnan(seconds):
        raise ValueError("a duration is a number of seconds, or a text such as 5m, 1h30m or 0; -1 is for ever")
    return FOREVER if seconds < 0 else seconds


def _read_text(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    parts = text.removeprefix("-")
    if _WHOLE.fullmatch(parts):
        return sign * sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(parts))
    try:
        return float(text)
    except ValueError:
        return math.nan
