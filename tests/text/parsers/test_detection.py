"""A model's formats, found by what its chat template shows. The excerpts are like those of the models named."""

from __future__ import annotations

import pytest

from app.text.parsers.format import ModelFacts
from app.text.parsers.formats import find_format

_HERMES_SYSTEM = "{{ '# Tools\\n<tools>' }}...{{ '<tool_call>\\n{\"name\": <function-name>, \"arguments\": ...}' }}"
_TEMPLATES: dict[str, tuple[str, str, str | None]] = {
    "Qwen 2.5": (_HERMES_SYSTEM, "hermes", None),
    "Qwen 3": (_HERMES_SYSTEM + "{% if '</think>' in content %}{{ '<think>\\n\\n</think>\\n\\n' }}", "hermes", "think"),
    "Qwen 3 Coder": ("<tool_call>\\n<function=example>\\n<parameter=key>\\nvalue\\n</parameter>", "qwen-coder", None),
    "SmolLM3": ("<tool_call>{{ '<think>\\n\\n</think>\\n' }}{{ xml_tools }}", "hermes", "think"),
    "GLM 4.5": (
        "<tool_call>{name}\\n<arg_key>{k}</arg_key>\\n<arg_value>{v}</arg_value><think></think>",
        "glm",
        "think",
    ),
    "Llama 3.1": (
        "{{ 'Respond in the format {\"name\": function name, \"parameters\": {...}}' }}{{ '<|python_tag|>' }}",
        "llama3",
        None,
    ),
    "Llama 3.2": ('{{ \'Respond in the format {"name": function name, "parameters": {...}}\' }}', "llama3", None),
    "Llama 4": ("{{ '<|python_start|>' }}", "pythonic", None),
    "Mistral 7B v0.3": ("{{ '[TOOL_CALLS] [' }}{{ tool_call.id|length != 9 }}", "mistral-array", None),
    "Mistral Small 3.2": ("{{ '[TOOL_CALLS]' + name + '[CALL_ID]' + id + '[ARGS]' }}", "mistral", None),
    "Magistral": ("{{ '[THINK]' + block['thinking'] + '[/THINK]' }}[TOOL_CALLS]n[ARGS]", "mistral", "mistral"),
    "Gemma 3": ("{{ '<start_of_turn>' + role }}", "generic", None),
    "Gemma 4": (
        "{{ '<|tool_call>call:' + name + '{' }}{{ '<|channel>thought\\n<channel|>' }}",
        "gemma4",
        "gemma4",
    ),
    "FunctionGemma": ("{{ '<start_function_call>call:' + name }}", "function-gemma", None),
    "gpt-oss": ("{{ '<|start|>assistant<|channel|>analysis<|message|>' }}", "harmony", None),
    "DeepSeek V3": (
        "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + type + '<｜tool▁sep｜>' + name + '\\n```json' }}",
        "deepseek-v3",
        None,
    ),
    "DeepSeek R1": ("<｜tool▁calls▁begin｜>```json{{ content.split('</think>') }}<think>", "deepseek-v3", "think"),
    "DeepSeek V3.1": ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ '</think>' }}", "deepseek-v3.1", "think"),
    "LFM2": ("{{ 'List of tools: <|tool_list_start|>[' }}{{ '<|tool_call_start|>[' }}", "lfm2", None),
    "Seed-OSS": ("{{ '<seed:think>' }}", "generic", "seed"),
    "SmolLM2": ("{{ '<|im_start|>' + message['role'] }}", "generic", None),
}


def facts(template: str, *, tokens: tuple[str, ...] = (), reads_tools: bool = True) -> ModelFacts:
    return ModelFacts(template=template, reads_tools=reads_tools, has_token=lambda text: text in tokens)


@pytest.mark.parametrize("model", _TEMPLATES)
def test_a_template_tells_its_formats(model: str) -> None:
    template, calls, thought = _TEMPLATES[model]
    found = find_format(facts(template))
    assert (found.calls.name, found.thought and found.thought.name) == (calls, thought)


def test_a_token_tells_where_the_template_does_not() -> None:
    template = "{{ 'List of tools: ' + (tools | tojson) }}"
    assert find_format(facts(template, tokens=("<|tool_call_start|>",))).calls.name == "lfm2"
    assert find_format(facts(template)).calls.name == "generic"


def test_settings_go_before_the_template() -> None:
    template = _TEMPLATES["Qwen 3"][0]
    found = find_format(facts(template), tool_format="pythonic", reasoning_format="none")
    assert (found.calls.name, found.thought) == ("pythonic", None)
    found = find_format(facts(""), reasoning_format="think")
    assert found.thought is not None


@pytest.mark.parametrize("names", [{"tool_format": "no-such"}, {"reasoning_format": "no-such"}])
def test_names_of_no_format_are_refused(names: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"no-such.*; there are "):
        find_format(facts(""), **names)


def test_ids_are_short_where_the_template_insists() -> None:
    assert find_format(facts(_TEMPLATES["Mistral 7B v0.3"][0])).short_ids
    assert not find_format(facts(_TEMPLATES["Qwen 3"][0])).short_ids
