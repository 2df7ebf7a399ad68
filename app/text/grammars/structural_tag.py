"""Structural tags, as vLLM, SGLang and xgrammar have them: forms that hold within tags of an otherwise free text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.errors import RequestError
from app.text.grammars.choice import literal
from app.text.grammars.grammar import Grammar
from app.text.grammars.json_schema import schema_rule
from app.text.grammars.lark import ebnf
from app.text.grammars.regex import regex_terminal

MAX_TAGS: Final = 256
_MAX_DEPTH: Final = 8
_TEXT: Final = "/(?s:.*)/"


def structural_tag(tag: Mapping[str, Any], *, param: str) -> Grammar:
    """The grammar of a structural tag, of the older form (``structures``, ``triggers``) or the newer (``format``).

    Args:
        param: the client's name for it, for errors.

    Raises:
        RequestError: 400, it is none, or has what cannot be honoured.
    """
    writer = _Writer()
    if "format" in tag:
        start = writer.write(tag["format"], f"{param}.format", 0)
    else:
        structures = _list(tag, "structures", param)
        tags = [
            {
                "begin": each.get("begin"),
                "end": each.get("end", ""),
                "content": {"type": "json_schema", "json_schema": each.get("schema", True)},
            }
            for each in structures
        ]
        triggers = tag.get("triggers")
        start = writer.write({"type": "triggered_tags", "triggers": triggers, "tags": tags}, param, 0)
    return Grammar("\n".join([f"start: {start}", *writer.rules]), writer.parts)


class _Writer:
    """Lark texts of the parts of one structural tag."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.parts: dict[str, str] = {}
        self._num_tags = 0

    def write(self, form: Any, param: str, depth: int) -> str:
        """The expression of a part, whose rules are kept. Raises :class:`RequestError` 400."""
        if not isinstance(form, Mapping) or depth > _MAX_DEPTH:
            raise _invalid(param, f"is no object, or nested more than {_MAX_DEPTH} deep")
        kind = form.get("type")
        if kind == "const_string":
            return literal(_text(form, "value", param), param=f"{param}.value")
        if kind == "json_schema":
            schema = form.get("json_schema", True)
            if not isinstance(schema, Mapping | bool):
                raise _invalid(f"{param}.json_schema", "is no JSON Schema")
            return self._rule(schema_rule(schema, param=f"{param}.json_schema"))
        if kind == "regex":
            return self._rule(regex_terminal(_text(form, "pattern", param), param=f"{param}.pattern"))
        if kind == "grammar":
            name = f"g{len(self.parts)}"
            self.parts[name] = ebnf(_text(form, "grammar", param), param=f"{param}.grammar").main
            return f"@{name}"
        if kind == "tag":
            return self._tag(form, param, depth, skip="")
        if kind in ("sequence", "or"):
            elements = [
                self.write(each, f"{param}.elements.{index}", depth + 1)
                for index, each in enumerate(_list(form, "elements", param))
            ]
            return "(" + (" " if kind == "sequence" else " | ").join(elements) + ")"
        if kind == "triggered_tags":
            return self._triggered(form, param, depth)
        if kind == "any_text":
            return self._rule(_TEXT)
        raise _invalid(f"{param}.type", "is not supported", code="unsupported_parameter")

    def _triggered(self, form: Mapping[str, Any], param: str, depth: int) -> str:
        triggers = form.get("triggers")
        if (
            not isinstance(triggers, list)
            or not triggers
            or not all(isinstance(each, str) and each for each in triggers)
        ):
            raise _invalid(f"{param}.triggers", "is no list of texts")
        tags: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        if any(one in other for one in tags for other in tags if one != other):
            raise _invalid(f"{param}.triggers", "has one within another")
        for index, tag in enumerate(_list(form, "tags", param)):
            begin = _text(tag, "begin", f"{param}.tags.{index}")
            trigger = next((each for each in tags if begin.startswith(each)), None)
            if trigger is None:
                raise _invalid(f"{param}.tags.{index}.begin", "begins with none of the triggers")
            tags[trigger].append(self._tag(tag, f"{param}.tags.{index}", depth + 1, skip=trigger))
        heads = []
        for trigger, bodies in tags.items():
            if not bodies:
                raise _invalid(f"{param}.triggers", "has one with which no tag begins")
            head = self._rule(f"{_TEXT} {literal(trigger, param=param)}", options="[lazy]")
            heads.append(f"{head} ({' | '.join(bodies)})")
        tagged = self._rule(" | ".join(heads))
        if form.get("stop_after_first"):
            return tagged
        others = " & ".join(f"~({_TEXT} {literal(trigger, param=param)} {_TEXT})" for trigger in tags)
        name = f"TAIL{len(self.rules)}"
        self.rules.append(f"{name}: {_TEXT} & {others}")
        return f"{tagged}{'+' if form.get('at_least_one') else '*'} {name}"

    def _tag(self, form: Any, param: str, depth: int, *, skip: str) -> str:
        """A tag without the beginning ``skip``, which stands before it."""
        self._num_tags += 1
        if not isinstance(form, Mapping) or self._num_tags > MAX_TAGS:
            raise _invalid(param, f"is no object, or the last of more than {MAX_TAGS}")
        begin = literal(_text(form, "begin", param)[len(skip) :], param=f"{param}.begin")
        end = _text(form, "end", param)
        content = form.get("content")
        if isinstance(content, Mapping) and content.get("type") == "any_text" and end:
            body = self._rule(f"{_TEXT} {literal(end, param=param)}", options="[lazy]")
            return self._rule(f"{begin} {body}")
        inner = self.write(content, f"{param}.content", depth + 1)
        return self._rule(f"{begin} {inner} {literal(end, param=f'{param}.end')}")

    def _rule(self, body: str, *, options: str = "") -> str:
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body}")
        return name


def _list(form: Mapping[str, Any], key: str, param: str) -> list[Mapping[str, Any]]:
    given = form.get(key)
    if not isinstance(given, list) or not given or not all(isinstance(each, Mapping) for each in given):
        raise _invalid(f"{param}.{key}", "is no list of objects")
    return given


def _text(form: Mapping[str, Any], key: str, param: str) -> str:
    given = form.get(key)
    if not isinstance(given, str):
        raise _invalid(f"{param}.{key}", "is no string")
    return given


def _invalid(param: str, why: str, *, code: str = "invalid_value") -> RequestError:
    return RequestError(f"{param} {why}.", code=code, param=param)
