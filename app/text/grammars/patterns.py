"""Regular expressions as clients write them (ECMAScript's, Python's), in the dialect that llguidance reads (Rust's).

The result matches what the original does, or less in corners where flavours differ: ``\\d`` is ``[0-9]``, laziness is
dropped, as it says how to match and not what. What has no counterpart is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

MAX_PATTERN: Final = 8192
"""Most characters of an expression."""

_QUANTIFIER: Final = re.compile(r"\{\d{1,6}(?:,\d{0,6})?\}")
_GROUP_NAME: Final = re.compile(r"\?P?<[A-Za-z_][A-Za-z0-9_]*>")
_FLAGS: Final = re.compile(r"\?[ims]{1,3}(?=[:)])")
_POSIX_CLASS: Final = re.compile(r"\[:\^?[a-z]{1,8}:\]")
_ANY_ON_LINE: Final = r"[^\n\r]"
_SPACE: Final = r" \t\n\r\f\v"
"""Space in every flavour,"""
_ANY_SPACE: Final = r"\s\u{1c}-\u{1f}\u{feff}"
"""and in any."""
_WORD: Final = r"\p{L}\p{N}_"
_LOOKAROUND: Final = ("?=", "?!", "?<=", "?<!")


class PatternError(ValueError):
    """An expression that cannot be honoured; the message says why."""


def searched(pattern: str) -> str:
    """An expression that a text has to contain a match of, as JSON Schema's ``pattern``; ``^`` and ``$`` anchor it.

    Raises:
        PatternError: it cannot be honoured.
    """
    return _Translation(pattern).run()


def matched(pattern: str) -> str:
    """An expression that has to match a whole text: anchors at its ends, or at those of its alternatives, say nothing.

    Raises:
        PatternError: it cannot be honoured.
    """
    return _Translation(pattern, whole=True).run()


@dataclass(slots=True)
class _Translation:
    pattern: str
    whole: bool = False
    at: int = 0
    depth: int = 0
    out: list[str] = field(default_factory=list)

    def run(self) -> str:
        if len(self.pattern) > MAX_PATTERN:
            raise PatternError(f"has more than {MAX_PATTERN} characters")
        while self.at < len(self.pattern):
            self._next()
        if self.depth:
            raise PatternError("has a group without an end")
        return "".join(self.out)

    def _next(self) -> None:
        char = self.pattern[self.at]
        if char == "\\":
            self.out.append(self._escape(in_class=False))
        elif char == "[":
            self.out.append(self._class())
        elif char == "(":
            self._open()
        elif char in "*+?{":
            self._quantifier(char)
        elif char in "^$":
            self._anchor(char)
        else:
            self.at += 1
            if char == ")":
                self.depth -= 1
                if self.depth < 0:
                    raise PatternError("has an end of a group without a beginning")
            self.out.append({".": _ANY_ON_LINE, "}": r"\}", "]": r"\]"}.get(char) or _literal(char))

    def _open(self) -> None:
        self.at += 1
        self.depth += 1
        if self._starts(*_LOOKAROUND):
            raise PatternError("looks around, which is not supported")
        if self._starts("?:"):
            self.at += 2
        elif name := _GROUP_NAME.match(self.pattern, self.at):
            self.at = name.end()
        elif flags := _FLAGS.match(self.pattern, self.at):
            self.out.append("(" + flags.group())
            self.at = flags.end()
            if self._starts(":"):
                self.at += 1
                self.out.append(":")
            return
        elif self._starts("?"):
            raise PatternError(f"has a group of a kind that is not supported: ({self.pattern[self.at :][:3]}")
        self.out.append("(?:")

    def _quantifier(self, char: str) -> None:
        if char == "{":
            counted = _QUANTIFIER.match(self.pattern, self.at)
            if counted is None:
                self.at += 1
                self.out.append(r"\{")
                return
            self.at = counted.end()
            self.out.append(counted.group())
        else:
            self.at += 1
            self.out.append(char)
        if self._starts("+"):
            raise PatternError("has a possessive quantifier, which is not supported")
        if self._starts("?"):
            self.at += 1

    def _anchor(self, char: str) -> None:
        if self.whole:
            at_end = self.depth == 0 and (
                self.at == 0 or self.pattern[self.at - 1] == "|"
                if char == "^"
                else self.at == len(self.pattern) - 1 or self.pattern[self.at + 1] == "|"
            )
            if not at_end:
                raise PatternError(f"has {char} elsewhere than at its ends, which is not supported")
        else:
            self.out.append(char)
        self.at += 1

    def _class(self) -> str:
        self.at += 1
        negated = self._starts("^")
        self.at += negated
        parts = ["[^" if negated else "["]
        if self._starts("]"):
            # Python takes it for a character of the class, ECMAScript for the end of an empty one.
            raise PatternError("has a class that begins with ]; write it as \\]")
        while not self._starts("]"):
            if self.at >= len(self.pattern):
                raise PatternError("has a class without an end")
            char = self.pattern[self.at]
            if char == "\\":
                parts.append(self._escape(in_class=True, negated=negated))
                continue
            if posix := _POSIX_CLASS.match(self.pattern, self.at):
                parts.append(posix.group())
                self.at = posix.end()
                continue
            self.at += 1
            # Rust has set operations and classes in classes.
            both = char == "-" and self._starts("-")
            parts.append("\\" + char if both or char in "[&~" else _literal(char))
        self.at += 1
        return "".join([*parts, "]"])

    def _escape(self, *, in_class: bool, negated: bool = False) -> str:
        char = self.pattern[self.at + 1 : self.at + 2]
        self.at += 2
        if not char:
            raise PatternError("ends with a backslash")
        if char in "bB" and not in_class:
            raise PatternError(f"has a word boundary (\\{char}), which is not supported")
        if char in "AzZ" and not in_class:
            return self._python_anchor(char)
        if char in "123456789" or (char == "k" and self._starts("<")):
            raise PatternError("refers back to a group, which is not supported")
        if char == "s":
            space = _ANY_SPACE if negated else _SPACE
            return space if in_class else f"[{space}]"
        if char == "S" and not negated:
            return f"[^{_ANY_SPACE}]"
        if char in "dD":
            digits = "0-9" if char == "d" else "^0-9"
            return digits if in_class and char == "d" else f"[{digits}]"
        if char == "w" and self.whole and not negated:
            return _WORD if in_class else f"[{_WORD}]"
        if char in "SwWtnrfv":
            return "\\" + char
        if char in "pP":
            return f"\\{char}" + self._taken(r"\{[A-Za-z_=]{1,40}\}")
        if char in "xuc0" or (char == "b" and in_class):
            return self._code_point(char)
        return re.escape(char) if char.isascii() and not char.isalnum() and char not in "<>/_ " else _literal(char)

    def _python_anchor(self, char: str) -> str:
        ends = self.at == 2 if char == "A" else self.at == len(self.pattern)
        if self.depth or not ends:
            raise PatternError(f"has \\{char} elsewhere than at its end, which is not supported")
        return "" if self.whole else "^" if char == "A" else "$"

    def _code_point(self, char: str) -> str:
        if char == "0":
            code = 0
        elif char == "b":
            code = 8
        elif char == "c":
            code = ord(self._taken("[A-Za-z]")) % 32
        elif char == "x":
            code = int(self._taken("[0-9A-Fa-f]{2}"), 16)
        else:
            code = int(self._taken(r"[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\}").strip("{}"), 16)
            if 0xD800 <= code < 0xDC00 and self._starts("\\u"):
                self.at += 2
                low = int(self._taken("[Dd][C-Fc-f][0-9A-Fa-f]{2}"), 16)
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise PatternError("names a code point that no text has")
        return f"\\u{{{code:x}}}"

    def _taken(self, expression: str) -> str:
        found = re.compile(expression).match(self.pattern, self.at)
        if found is None:
            raise PatternError(f"has an escape without its end: {self.pattern[max(0, self.at - 2) : self.at + 4]}")
        self.at = found.end()
        return found.group()

    def _starts(self, *prefixes: str) -> bool:
        return self.pattern.startswith(prefixes, self.at)


def _literal(char: str) -> str:
    """A character that stands for itself, or for an operator that both flavours have; none that would end a line."""
    if 0xD800 <= ord(char) < 0xE000:
        raise PatternError("names a code point that no text has")
    return char if char.isprintable() else f"\\u{{{ord(char):x}}}"
