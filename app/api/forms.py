"""Fields that bind an answer to a form, by the names that servers have for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from pydantic import Field

from app.api.fields import Body, JsonObject
from app.errors import RequestError
from app.text.grammars.choice import MAX_CHOICES, choice
from app.text.grammars.grammar import Grammar
from app.text.grammars.json_object import json_object
from app.text.grammars.json_schema import json_schema
from app.text.grammars.lark import ebnf
from app.text.grammars.regex import regex
from app.text.grammars.structural_tag import structural_tag
from app.text.grammars.whitespace import BOUNDED, NONE, whitespace_pattern
from app.text.grammars.without import MAX_WORD_CHARS, MAX_WORDS, without

Schema = JsonObject | str | bool
"""A JSON Schema, or its JSON as a string."""
_Reader = Callable[[], Grammar]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to match, and the client's name for what says so."""

    grammar: Grammar
    param: str


class FormFields(Body):
    """Fields of bodies whose answers can be bound to a form; one of them may be given."""

    response_format: JsonObject | None = Field(
        None,
        description='`{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": {}}}`; '
        "also `regex`, `grammar` and `structural_tag`, as other servers have them.",
    )
    structured_outputs: JsonObject | None = Field(
        None,
        description="One of `json`, `regex`, `choice`, `grammar`, `json_object` and `structural_tag`; with JSON "
        "`whitespace_pattern` or `disable_any_whitespace`.",
    )
    guided_json: Schema | None = Field(None, description="A JSON Schema, or its text.")
    guided_regex: str | None = Field(None, description="An expression that the whole answer matches.")
    guided_choice: Annotated[list[str], Field(fail_fast=True, max_length=MAX_CHOICES)] | None = Field(
        None, description="Texts, one of which is the answer."
    )
    guided_grammar: str | None = Field(None, description="A grammar, Lark or GBNF.")
    guided_json_object: bool | None = Field(None, description="The answer is a JSON object.")
    guided_whitespace_pattern: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="What may stand between two tokens of the JSON."
    )
    json_schema: Schema | None = Field(None, description="A JSON Schema, or its text.")
    regex: str | None = Field(None, description="An expression that the whole answer matches.")
    ebnf: str | None = Field(None, description="A grammar, GBNF or Lark.")
    grammar: str | None = Field(None, description="A grammar, GBNF or Lark.")
    structural_tag: JsonObject | str | None = Field(None, description="Tags within which a JSON Schema holds.")
    format: JsonObject | str | None = Field(None, description="`json`, or a JSON Schema.")
    response_schema: JsonObject | None = Field(None, description="A JSON Schema.")
    bad_words: (
        Annotated[list[Annotated[str, Field(max_length=MAX_WORD_CHARS)]], Field(fail_fast=True, max_length=MAX_WORDS)]
        | None
    ) = Field(None, description="Texts that the answer does not have in it.")


def read_form(body: FormFields) -> Form | None:
    """What a body binds its answers to; None: nothing. Raises :class:`RequestError` 400."""
    whitespace = BOUNDED
    if body.guided_whitespace_pattern is not None:
        whitespace = whitespace_pattern(body.guided_whitespace_pattern, param="guided_whitespace_pattern")
    return only_form(
        response_format(body.response_format),
        _structured_outputs(body.structured_outputs),
        _given("guided_json", body.guided_json, partial(schema_form, whitespace=whitespace)),
        _given("guided_regex", body.guided_regex, _regex),
        _given("guided_choice", body.guided_choice, _choice),
        _given("guided_grammar", body.guided_grammar, _ebnf),
        _given("guided_json_object", body.guided_json_object, partial(_object, whitespace=whitespace)),
        _given("json_schema", body.json_schema, schema_form),
        _given("regex", body.regex, _regex),
        _given("ebnf", body.ebnf, _ebnf),
        _given("grammar", body.grammar, _ebnf),
        _given("structural_tag", body.structural_tag, _structural_tag),
        format_form(body.format),
        _given("response_schema", body.response_schema, schema_form),
        _given("bad_words", body.bad_words, _without),
    )


Wanted = tuple[str, _Reader] | None
"""The client's name for what it wants, and what reads it."""


def only_form(*wanted: Wanted) -> Form | None:
    """The one form that is wanted; None: none. Raises :class:`RequestError` 400 for several, and as its reader does."""
    given = [each for each in wanted if each is not None]
    if not given:
        return None
    param, read = given[0]
    if len(given) > 1:
        other = given[1][0]
        message = f"{param} and {other} both bind the answer to a form: only one can."
        raise RequestError(message, code="invalid_value", param=other)
    return Form(read(), param)


def response_format(asked: Mapping[str, Any] | None, name: str = "response_format") -> Wanted:
    """What OpenAI's field of this kind asks for, and its variants of other servers.

    Raises:
        RequestError: 400, it has no known type, or not what its type needs.
    """
    kind = (asked or {}).get("type", "text" if not asked else None)
    if asked is None or kind == "text":
        return None
    if kind == "json_object":
        for key in ("schema", "value"):
            if asked.get(key) is not None:
                return _wanted(f"{name}.{key}", asked[key], schema_form)
        return _wanted(name, True, _object)
    if kind == "json_schema":
        return _json_schema(asked, name)
    for kinds, keys, read in _RESPONSE_FORMATS:
        if kind in kinds:
            for key in keys:
                if asked.get(key) is not None:
                    return _wanted(f"{name}.{key}", asked[key], read)
            raise _invalid(f"{name}.{keys[0]}", f"{name}.{keys[0]} is missing.")
    if kind == "structural_tag":
        return _wanted(name, dict(asked), _structural_tag)
    raise _invalid(f"{name}.type", f"{name}.type is none of text, json_object, json_schema, regex, grammar.")


def _json_schema(asked: Mapping[str, Any], name: str) -> Wanted:
    for key in ("json_schema", "value"):
        inner = asked.get(key)
        if isinstance(inner, Mapping) and "schema" in inner:
            return _wanted(f"{name}.{key}.schema", inner["schema"], schema_form)
        if inner is not None and key == "value":
            return _wanted(f"{name}.{key}", inner, schema_form)
    if asked.get("schema") is not None:
        return _wanted(f"{name}.schema", asked["schema"], schema_form)
    raise _invalid(f"{name}.json_schema.schema", f"{name}.json_schema.schema is missing.")


def format_form(asked: Mapping[str, Any] | str | None, name: str = "format") -> Wanted:
    """What Ollama's field of this kind asks for: ``"json"``, or a schema. Raises :class:`RequestError` 400."""
    if asked is None or asked == "":
        return None
    if asked == "json":
        return _wanted(name, True, _object)
    if isinstance(asked, str) and not asked.lstrip().startswith("{"):
        raise _invalid(name, f'{name} is neither "json" nor a JSON Schema.')
    return _wanted(name, asked, schema_form)


def typed_form(asked: Mapping[str, Any] | None, name: str = "grammar") -> Wanted:
    """What TGI's field of this kind asks for: a ``type`` and a ``value``. Raises :class:`RequestError` 400."""
    if asked is None:
        return None
    value, kind = asked.get("value"), asked.get("type")
    if value is None:
        raise _invalid(f"{name}.value", f"{name}.value is missing.")
    if kind == "regex":
        return _wanted(f"{name}.value", value, _regex)
    if kind == "json_schema" and isinstance(value, Mapping) and isinstance(value.get("schema"), Mapping):
        return _wanted(f"{name}.value.schema", value["schema"], schema_form)
    if kind in ("json", "json_schema", "json_object"):
        return _wanted(f"{name}.value", value, schema_form)
    raise _invalid(f"{name}.type", f"{name}.type is none of json, regex, json_schema.")


def schema_form(param: str, value: Any, *, whitespace: str = BOUNDED) -> Grammar:
    """The grammar of a JSON Schema, or of its text. Raises :class:`RequestError` 400."""
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise _invalid(param, f"{param} is no JSON.") from None
    if not isinstance(value, Mapping | bool):
        raise _invalid(param, f"{param} is no JSON Schema: neither an object nor a boolean.")
    return json_schema(value, param=param, whitespace=whitespace)


def _structured_outputs(asked: Mapping[str, Any] | None) -> Wanted:
    name = "structured_outputs"
    given = {key: value for key, value in (asked or {}).items() if value is not None}
    whitespace = BOUNDED
    if "whitespace_pattern" in given:
        param = f"{name}.whitespace_pattern"
        whitespace = whitespace_pattern(_text(param, given.pop("whitespace_pattern")), param=param)
    if given.pop("disable_any_whitespace", False):
        whitespace = NONE
    for key in _OF_OTHER_BACKENDS:
        given.pop(key, None)
    readers: dict[str, Callable[[str, Any], Grammar]] = {
        "json": partial(schema_form, whitespace=whitespace),
        "json_object": partial(_object, whitespace=whitespace),
        "regex": _regex,
        "choice": _choice,
        "grammar": _ebnf,
        "structural_tag": _structural_tag,
    }
    for key, value in given.items():
        if key not in readers and value:
            param = f"{name}.{key}"
            message = f"{param} is not supported by this server."
            raise RequestError(message, code="unsupported_parameter", param=param)
    wanted = [
        each for key, read in readers.items() if (each := _given(f"{name}.{key}", given.get(key), read)) is not None
    ]
    if len(wanted) > 1:
        raise _invalid(wanted[1][0], f"{wanted[0][0]} and {wanted[1][0]} both bind the answer to a form: only one can.")
    return wanted[0] if wanted else None


def _given(param: str, value: Any, read: Callable[[str, Any], Grammar]) -> Wanted:
    """What a field asks for, if its value asks for anything."""
    if value is None or value == "" or value == [] or (value is False and read is not schema_form):
        return None
    return _wanted(param, value, read)


def _wanted(param: str, value: Any, read: Callable[[str, Any], Grammar]) -> tuple[str, _Reader]:
    return param, lambda: read(param, value)


def _regex(param: str, value: Any) -> Grammar:
    return regex(_text(param, value), param=param)


def _ebnf(param: str, value: Any) -> Grammar:
    return ebnf(_text(param, value), param=param)


def _choice(param: str, value: Any) -> Grammar:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _invalid(param, f"{param} is no list of strings.")
    return choice(value, param=param)


def _without(param: str, value: Any) -> Grammar:
    return without(value, param=param)


def _object(param: str, value: Any, *, whitespace: str = BOUNDED) -> Grammar:
    if value is not True:
        raise _invalid(param, f"{param} is neither true nor false.")
    return json_object(param=param, whitespace=whitespace)


def _structural_tag(param: str, value: Any) -> Grammar:
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise _invalid(param, f"{param} is no JSON.") from None
    if not isinstance(value, Mapping):
        raise _invalid(param, f"{param} is no object.")
    return structural_tag(value, param=param)


def _text(param: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _invalid(param, f"{param} is no string.")
    return value


def _invalid(param: str, message: str) -> RequestError:
    return RequestError(message, code="invalid_value", param=param)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_OF_OTHER_BACKENDS: Final = ("disable_fallback", "_backend", "_backend_was_auto", "backend")
"""Which library is to enforce a form, and how: an answer has the form whichever it is."""
_RESPONSE_FORMATS: Final = (
    (("regex",), ("value", "pattern", "regex"), _regex),
    (("grammar", "ebnf", "gbnf", "lark"), ("grammar", "value"), _ebnf),
)
