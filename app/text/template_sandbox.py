"""The Jinja that chat templates are run in: the sandbox and helpers they are written for, bounded in time and memory.

Work is counted in steps, about one an expression. A loop pays for all its rounds when it is entered, a call when it is
made, so that no stretch of a template's own code is longer than what was left. Operations that the library does in one
go (repeating, padding, replacing) are refused by the size of what they would make.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

MAX_SOURCE_CHARS = 200_000
"""Longest template compiled; real ones have up to some 30,000 characters."""
MAX_VALUE = 16_000_000
"""Longest string or list that a template may make."""
_MAX_INT_BITS = 4_096
_CALL_STEPS = 10
_WRAP_STEPS = 10
"""Steps for each character of a text that is wrapped."""
_STEPS_BETWEEN_CHECKS = 10_000


# Made once: a union in isinstance() is built anew at each call.
_SIZED = (str, list, tuple, dict)
_HAS_METHODS = (str, bytes, int)


class OutOfBudgetError(Exception):
    """The template took more steps or time than it has."""


class Budget:
    """Steps and time that one rendering may take.

    Args:
        steps: most steps, about one an expression.
        seconds: most seconds, counted from the first step. A rendering that waits for its turn has not begun.
    """

    def __init__(self, steps: int, seconds: float) -> None:
        self._left = steps
        self._next_check = steps
        self._seconds = seconds
        self._end: float | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Ends the rendering soon, from another thread: nobody waits for it any more."""
        self._cancelled = True

    def spend(self, steps: int) -> None:
        """Takes steps off the budget. Raises :class:`OutOfBudgetError` when there are too few, or the time is up."""
        self._left -= steps
        if self._left < 0:
            raise OutOfBudgetError("it takes too many steps")
        if self._left <= self._next_check:
            self._next_check = self._left - _STEPS_BETWEEN_CHECKS
            now = time.monotonic()
            if self._end is None:
                self._end = now + self._seconds
            if self._cancelled or now > self._end:
                raise OutOfBudgetError("it takes too long")


class _Current(threading.local):
    budget: Budget | None = None


_CURRENT = _Current()


@contextlib.contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Templates that this thread renders in the block pay from ``budget``."""
    before = _CURRENT.budget
    _CURRENT.budget = budget
    try:
        yield
    finally:
        _CURRENT.budget = before


def _spend(steps: int) -> None:
    if _CURRENT.budget is not None:
        _CURRENT.budget.spend(steps)


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=lineno)


class TemplateEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of every chat template."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.filters["_counted"] = _counted
        self.filters["_bounded"] = _bounded
        # Unbounded, and of no use in a prompt.
        del self.globals["lipsum"], self.filters["urlize"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.concat = _concat  # type: ignore[method-assign]

    def parse_bounded(self, source: str) -> jinja2.nodes.Template:
        """The syntax tree, with what counts its work put in.

        Raises:
            jinja2.TemplateError: the source is too long or not a template.
        """
        if len(source) > MAX_SOURCE_CHARS:
            raise jinja2.TemplateError(f"{len(source)} characters, at most {MAX_SOURCE_CHARS} are read")
        tree = self.parse(source)
        for loop in tree.find_all(jinja2.nodes.For):
            rounds = jinja2.nodes.Const(sum(1 for _ in loop.find_all(jinja2.nodes.Node)), lineno=loop.lineno)
            loop.iter = self._filter(loop.iter, "_counted", [rounds])
        for assignment in tree.find_all(jinja2.nodes.Assign):
            if not isinstance(assignment.node, jinja2.nodes.Const):
                assignment.node = self._filter(assignment.node, "_bounded", [])
        return tree

    def _filter(self, node: jinja2.nodes.Node, name: str, args: list[jinja2.nodes.Expr]) -> jinja2.nodes.Filter:
        return jinja2.nodes.Filter(node, name, args, [], None, None, lineno=node.lineno, environment=self)

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call in a template, paid for."""
        _spend(_CALL_STEPS)
        if isinstance(obj, jinja2.runtime.LoopContext):  # a recursive loop's next level
            args = tuple(_counted(context, arg, _CALL_STEPS) for arg in args)
        elif args or kwargs:
            owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
            if isinstance(owner, _HAS_METHODS):
                _check_growth(obj.__name__, owner, [*args, *kwargs.values()])
        return _checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """An operation that could make something huge of small operands."""
        if isinstance(left, str) and operator == "%":
            _check_growth("%", left, [*right] if isinstance(right, tuple) else [right])
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
            _check_size(bits, _MAX_INT_BITS)
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(sequence, "__len__"):
                    _check_size(len(sequence) * times)
        return super().call_binop(context, operator, left, right)


def _too_large() -> OutOfBudgetError:
    return OutOfBudgetError("it makes a value that is too large")


def _check_size(size: int, limit: int = MAX_VALUE) -> None:
    if size > limit:
        raise _too_large()


def _checked(value: Any) -> Any:
    if isinstance(value, _SIZED) and len(value) > MAX_VALUE:
        raise _too_large()
    return value


_WIDE_FORMAT = re.compile(r"\d{6}|\*|\{[^{}]*\{")


def _check_growth(name: str, value: Any, args: Sequence[Any]) -> None:
    """Refuses what a method or filter of this name would make too large; its result is checked when it is there."""
    widest = max((abs(arg) for arg in args if isinstance(arg, int)), default=0)
    texts = [arg for arg in args if isinstance(arg, str | bytes)]
    match name:
        case "center" | "ljust" | "rjust" | "zfill" | "to_bytes" | "slice" | "batch":
            _check_size(widest)
        case "indent" | "wordwrap" if isinstance(value, str):
            _check_size(len(value) + value.count("\n") * max([widest, *map(len, texts)]))
        case "expandtabs":
            _check_size(len(value) + value.count(type(value)("\t")) * widest if isinstance(value, str) else widest)
        case "replace" if isinstance(value, str) and len(texts) > 1:
            _check_size(len(value) + value.count(str(texts[0])) * len(texts[1]))
        case "format" | "format_map" | "%" if isinstance(value, str):
            fields = value.count("%") + value.count("{")
            longest = max(map(len, texts), default=0)
            _check_size(len(value) + fields * longest if not _WIDE_FORMAT.search(value) else MAX_VALUE + 1)
        case "join" if isinstance(value, str) and args:
            _check_size(len(value) + _total(args[0], value))


def _total(items: Any, separator: str) -> int:
    if not isinstance(items, list | tuple | dict):
        return 0
    return sum(len(item) + len(separator) for item in items if isinstance(item, str))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, refused where it would make something too large. What Jinja passes first is passed on."""
    first = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[first:]
        if name == "wordwrap":
            _spend(_WRAP_STEPS * len(value))
        if name == "join":
            separator = str(others[0]) if others else ""
            _check_size(_total(value, separator))
        elif others or kwargs:
            _check_growth(name, value, [*others, *kwargs.values()])
        return _checked(function(*args, **kwargs))

    return bounded


@jinja2.pass_context  # keeps the compiler from doing it
def _counted(_context: jinja2.runtime.Context, iterable: Any, steps: int) -> Any:
    """What a loop goes over, paid for: all rounds at once where they are known, one after the other otherwise."""
    try:
        size = len(iterable)
    except TypeError:
        return _counting(iterable, steps)
    _spend((size + 1) * steps)
    return iterable


def _counting(iterable: Iterable[Any], steps: int) -> Iterator[Any]:
    for item in iterable:
        _spend(steps)
        yield item


@jinja2.pass_context
def _bounded(_context: jinja2.runtime.Context, value: Any) -> Any:
    """What a variable is set to: it must not grow without end."""
    return _checked(value)


def _concat(pieces: Iterable[str]) -> str:
    pieces = list(pieces)
    _check_size(sum(map(len, pieces)))
    return "".join(pieces)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes it for HTML."""
    _check_size(indent if isinstance(indent, int) else len(indent or ""), 1_000)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)
