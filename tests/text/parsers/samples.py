"""A tool, and replies that call it, in each format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.text.parsers.format import CallFormat
from app.text.parsers.formats import FORMATS

WEATHER: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "strict": {"type": "boolean"},
    },
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: Mapping[str, Mapping[str, Any]] = {"get_weather": WEATHER, "now": NOTHING}
ARGUMENTS = {"city": 'Köln "am" Rhein', "days": 2, "tags": ["a{", "b]"]}
_JSON = '{"city": "Köln \\"am\\" Rhein", "days": 2, "tags": ["a{", "b]"]}'


class Sample(NamedTuple):
    """A reply that says something, then calls ``get_weather`` with ARGUMENTS, and ``now`` without any."""

    name: str
    before: str
    """What it says before."""
    first: str
    """The first call."""
    second: str
    """The second call."""
    after: str = ""


SAMPLES = (
    Sample(
        "hermes",
        "Let me look.\n",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {_JSON}}}\n</tool_call>',
        '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    Sample(
        "generic",
        "Let me look.\n",
        f'<tool_call>{{"name": "get_weather", "arguments": {_JSON}}}</tool_call>',
        '<tool_call>{"name": "now"}</tool_call>',
    ),
    Sample(
        "qwen-coder",
        "Let me look.\n",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln "am" Rhein\n</parameter>\n'
        '<parameter=days>\n2\n</parameter>\n<parameter=tags>\n["a{", "b]"]\n</parameter>\n</function>\n</tool_call>',
        "\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    Sample(
        "glm",
        "Let me look.\n",
        '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln "am" Rhein</arg_value>\n'
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n"
        '<arg_key>tags</arg_key>\n<arg_value>["a{", "b]"]</arg_value>\n</tool_call>',
        "\n<tool_call>now\n</tool_call>",
    ),
    Sample("llama3", "", f'{{"name": "get_weather", "parameters": {_JSON}}}', '; {"name": "now", "parameters": {}}'),
    Sample("mistral", "Let me look.", f"[TOOL_CALLS]get_weather[ARGS]{_JSON}", "[TOOL_CALLS]now[ARGS]{}"),
    Sample(
        "mistral-array",
        "Let me look.",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {_JSON}}}',
        ', {"name": "now", "arguments": {}}]',
    ),
    Sample(
        "deepseek-v3",
        "Let me look.\n",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{_JSON}\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    Sample(
        "deepseek-v3.1",
        "Let me look.\n",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{_JSON}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    Sample(
        "lfm2",
        "Let me look.\n",
        "<|tool_call_start|>[get_weather(city='Köln \"am\" Rhein', days=2, tags=[\"a{\", 'b]'])",
        ", now()]<|tool_call_end|>",
    ),
    Sample("pythonic", "", '[get_weather(city="Köln \\"am\\" Rhein", days=2, tags=["a{", "b]"])', ", now()]"),
    Sample(
        "gemma4",
        "Let me look.\n",
        '<|tool_call>call:get_weather{city:<|"|>Köln "am" Rhein<|"|>,days:2,'
        'tags:[<|"|>a{<|"|>,<|"|>b]<|"|>]}<tool_call|>',
        "<|tool_call>call:now{}<tool_call|>",
    ),
    Sample(
        "function-gemma",
        "Let me look.\n",
        '<start_function_call>call:get_weather{city:<escape>Köln "am" Rhein<escape>,days:2,'
        "tags:[<escape>a{<escape>,<escape>b]<escape>]}<end_function_call>",
        "<start_function_call>call:now{}<end_function_call>",
    ),
    Sample(
        "harmony",
        "<|channel|>commentary<|message|>Let me look.\n<|end|><|start|>assistant",
        f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{_JSON}<|call|>",
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}",
    ),
)


def call_format(name: str) -> CallFormat:
    """The format of a name."""
    return next(each for each in FORMATS if each.name == name)
