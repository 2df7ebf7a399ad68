"""Numbers, bounds and constants of a JSON Schema, such that llguidance's reading of them is exact and bounded."""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Final

from app.text.grammars.schema_places import Place

MAX_COUNT: Final = 1_000_000
"""Largest bound on lengths and numbers of items."""
_DIGITS: Final = 15
"""Most digits of a number with a fraction; llguidance may read one with more as its neighbour."""
_SAFE: Final = 2**53 - 1
"""Largest integer up to which doubles hold every one: what any client can parse."""
_LARGEST: Final = 2**63 - 1024
"""Largest bound that llguidance keeps: the last double before 64-bit integers end."""
_MOST: Final = 10**15
"""Numbers that a schema does not bound have at most 15 digits before the point,"""
_STEP: Final = 1e-10
FRACTION: Final[Mapping[str, float]] = {"multipleOf": _STEP}
"""and 10 behind it: what bounds these, in schemas that have no ``multipleOf``."""
_UNQUOTABLE: Final = frozenset(map(chr, (*range(0x20), 0x7F))) - set("\b\f\n\r\t")
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
COUNTS: Final = frozenset(_COUNTS)
NUMBERS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})


def read_count(value: Any, place: Place) -> int:
    """A length, or a number of items. Raises :class:`RequestError` 400."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        raise place.refusal("is no count")
    if value > MAX_COUNT:
        raise place.refusal(f"is above {MAX_COUNT}")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_bounds(schema: Mapping[str, Any], types: frozenset[str], place: Place) -> dict[str, Any]:
    """Bounds of numbers: those of a schema, and where it has none, those that keep a number short.

    Args:
        types: types that the schema names; empty: it names none.

    Raises:
        RequestError: 400, a bound is no number, or too large to be enforced.
    """
    given = _given_bounds(schema, place)
    if not given and not types & {"number", "integer"}:
        return {}
    low, high = given.get("minimum"), given.get("maximum")
    low = max((each for each in (low, given.get("exclusiveMinimum")) if each is not None), default=None)
    high = min((each for each in (high, given.get("exclusiveMaximum")) if each is not None), default=None)
    integers = types & {"number", "integer"} == {"integer"}
    usual = _SAFE if integers else _MOST
    limit = _LARGEST if integers else _MOST
    for name, bound, sign in (("minimum", low, 1), ("maximum", high, -1)):
        if bound is not None and sign * bound >= limit:
            raise place.at(name if name in schema else f"exclusive{name.title()}").refusal(f"is beyond {limit}")
    if high is None or high > limit:
        given.pop("exclusiveMaximum", None)
        given["maximum"] = usual if low is None or low < usual else limit
    if low is None or low < -limit:
        given.pop("exclusiveMinimum", None)
        given["minimum"] = -usual if high is None or high > -usual else -limit
    exact = {name: _exact(bound, up="inimum" in name) for name, bound in given.items()}
    return exact if integers else _without_open_integers(exact)


def multiples_overflow(multiples: Iterable[int | float]) -> bool:
    """Whether the least common multiple of two values of ``multipleOf`` leaves llguidance's 32 bits on its way."""
    decimals = [_decimal(each) for each in multiples]
    for one, first in enumerate(decimals):
        for second in decimals[:one]:
            digits = max(first[1], second[1])
            product = first[0] * 10 ** (digits - first[1]) * second[0] * 10 ** (digits - second[1])
            if product >= 2**32:
                return True
    return False


def read_multiple(value: Any, place: Place) -> int | float:
    """``multipleOf``. Raises :class:`RequestError` 400."""
    if not is_number(value) or value <= 0:
        raise place.refusal("is no positive number")
    coefficient, digits = _decimal(value)
    if digits > 9 or coefficient > 10_000:
        # The automaton that divides has a state for each remainder.
        raise place.refusal("cannot be enforced: it has more than 9 decimals, or is more than 10000 of the last one")
    return int(value) if value == value // 1 else float(value)


def read_constant(value: Any, place: Place, depth: int = 0) -> Any:
    """A value of ``const`` or ``enum``. Raises :class:`RequestError` 400 when answers cannot be bound to it."""
    if depth > 32:
        raise place.refusal("is nested too deeply")
    if isinstance(value, str):
        return read_constant_text(value, place)
    if is_number(value):
        if abs(value) > _LARGEST or (isinstance(value, int) and int(float(value)) != value):
            raise place.refusal("cannot be enforced: it has more digits than a double")
        if isinstance(value, float) and len(decimal.Decimal(repr(value)).as_tuple().digits) > _DIGITS:
            raise place.refusal(f"cannot be enforced: it has more than {_DIGITS} digits")
        return int(value) if value == value // 1 else value
    if isinstance(value, list):
        return [read_constant(each, place, depth + 1) for each in value]
    if isinstance(value, dict):
        return {check_text(key, place): read_constant(each, place, depth + 1) for key, each in value.items()}
    return value


def read_constant_text(value: str, place: Place) -> str:
    """A string of ``const`` or ``enum``. Raises likewise."""
    if not _UNQUOTABLE.isdisjoint(value):
        raise place.refusal("cannot be enforced: it has a control character")
    return check_text(value, place)


def check_text(value: str, place: Place) -> str:
    """The text itself. Raises :class:`RequestError` 400 when it has half of a surrogate pair."""
    if any(0xD800 <= ord(char) < 0xE000 for char in value):
        raise place.refusal("has half of a surrogate pair, which is no text")
    return value


def _decimal(value: int | float) -> tuple[int, int]:
    """A number as an integer and the digits of it that stand behind the point; at most 20."""
    fraction, digits = Fraction(str(value)), 0
    while fraction.denominator > 1 and digits < 20:
        fraction, digits = fraction * 10, digits + 1
    return fraction.numerator // fraction.denominator, digits


def _given_bounds(schema: Mapping[str, Any], place: Place) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if name not in schema:
            continue
        bound: Any = schema[name]
        if isinstance(bound, bool) and name.startswith("exclusive"):  # draft 4: whether the other bound is itself out
            inclusive = name[len("exclusive") :].lower()
            if bound and inclusive in given:
                given[name] = given.pop(inclusive)
            continue
        if not is_number(bound) or not math.isfinite(bound):
            raise place.at(name).refusal("is no number")
        given[name] = bound
    return given


def _without_open_integers(bounds: dict[str, Any]) -> dict[str, Any]:
    """Bounds of which none is an integer that is itself out.

    llguidance takes such a one for being in, if the other bound has the same digits before the point.
    """
    for open_name, name, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        bound = bounds.get(open_name)
        if isinstance(bound, int):
            del bounds[open_name]
            nearest = _exact(math.nextafter(bound, sign * math.inf), up=sign > 0)
            next_in = max(bound + _STEP, nearest) if sign > 0 else min(bound - _STEP, nearest)
            both = (bounds.get(name, next_in), next_in)
            bounds[name] = max(both) if sign > 0 else min(both)
    return bounds


def _exact(bound: int | float, *, up: bool) -> int | float:
    """A bound as a double that llguidance reads as it is, moved inwards where there is none. Integers stay integers."""
    if isinstance(bound, float):
        if bound == bound // 1:
            return int(bound)
        rounding = decimal.ROUND_CEILING if up else decimal.ROUND_FLOOR
        return float(decimal.Context(prec=_DIGITS, rounding=rounding).create_decimal(repr(bound)))
    nearest = float(bound)
    if int(nearest) != bound and (int(nearest) < bound) == up:
        nearest = math.nextafter(nearest, math.inf if up else -math.inf)
    return int(nearest)
