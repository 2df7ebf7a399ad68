"""Templates get messages in the form that they show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.text.chat_template import ChatTemplate
from tests.byte_tokenizer import CHATML_TEMPLATE, build_byte_tokenizer

Message = dict[str, Any]

TOOL = {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}}

LOOPS_OVER_A_COPY = (
    "{% for message in messages %}{% set parts = message.content %}[{{ message.role }}]"
    "{% for part in parts %}{% if part.type == 'text' %}{{ part.text }};{% endif %}{% endfor %}{% endfor %}"
)
TAKES_THE_FIRST_PART = "{% for message in messages %}{{ message['content'][0]['text'] }};{% endfor %}"
TAKES_BOTH = (
    "{% for message in messages %}[{{ message.role }}]{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }};{% endfor %}{% endif %}{% endfor %}"
)
SYSTEM_IS_A_STRING = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}{% for part in message.content %}{{ part.text }};{% endfor %}{% endfor %}"
)
LOOPS_OVER_LINES = (
    "{% for message in messages %}{% for line in message.content.split('\n') %}> {{ line }}\n{% endfor %}{% endfor %}"
)
SHOWS_ARGUMENTS_AS_JSON = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content if message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}"
)
CONCATENATES_ARGUMENTS = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and message['content'] is none %}"
    "{% for call in message['tool_calls'] %}{{ call['function']['name'] + '\n' + call['function']['arguments'] }}"
    "{% endfor %}{% else %}{{ message['role'] + ': ' + message['content'] }}{% endif %}{% endfor %}"
)
TESTS_WHAT_IS_DEFINED = (
    "{% for message in messages %}{{ message.role }}"
    "{% if message.tool_calls is defined %} calls{% endif %}{% if message.name is defined %} named{% endif %}"
    "{% if message.reasoning_content is defined %} thinks{% endif %}{% if 'refusal' in message %} refuses{% endif %}"
    ": {{ message.content }}\n{% endfor %}"
)
NAMES_TOKENS = (
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token }}{{ cls_token }}{{ mask_token }}"
    "{{ image_token }}{% if absent_token is defined %}!{% endif %}"
)


TOKENS = {
    **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")},
    "image_token": "<image>",
}


def parts(*texts: str) -> list[Message]:
    return [{"type": "text", "text": text} for text in texts]


def calling(arguments: Any, content: Any = None) -> Message:
    call = {"id": "call00001", "type": "function", "function": {"name": "now", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def transformers_prompt(template: str, messages: list[Message], **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_byte_tokenizer(), chat_template=template)
    prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return prompt


class TestContent:
    @pytest.mark.parametrize(
        ("template", "content", "shown"),
        [
            (LOOPS_OVER_A_COPY, "one", "[user]one;"),
            (LOOPS_OVER_A_COPY, parts("one", "two"), "[user]one;two;"),
            (TAKES_THE_FIRST_PART, "one", "one;"),
            (TAKES_THE_FIRST_PART, parts("one", "two"), "one\ntwo;"),
            (TAKES_BOTH, "one", "[user]one"),
            (TAKES_BOTH, parts("one", "two"), "[user]one;two;"),
            (LOOPS_OVER_LINES, "one", "> one\n"),
            (LOOPS_OVER_LINES, parts("one", "two"), "> one\n> two\n"),
            (SYSTEM_IS_A_STRING, "one", "one;"),
            ("{% for part in messages[0].content %}{{ part.text | upper }}{% endfor %}", "one", "ONE"),
            ("{{ messages[0].content }}", parts("one", "two"), "one\ntwo"),
            ("{{ messages | tojson }}", "one", '[{"role": "user", "content": "one"}]'),
            ("{{ messages[0].content | length }}", "one", "3"),
        ],
    )
    def test_nothing_vanishes(self, template: str, content: Any, shown: str) -> None:
        assert ChatTemplate(template).render([user(content)]) == shown

    def test_roles_may_differ(self) -> None:
        template = ChatTemplate(SYSTEM_IS_A_STRING)
        for content in ("be brief", parts("be brief")):
            assert template.render([{"role": "system", "content": content}, user("hi")]) == "be briefhi;"

    @pytest.mark.parametrize("content", ["one", parts("one"), parts("one", "two")])
    def test_what_a_template_takes_is_what_transformers_gives_it(self, content: Any) -> None:
        for template in (TAKES_BOTH, LOOPS_OVER_A_COPY if isinstance(content, list) else CHATML_TEMPLATE):
            messages = [{"role": "system", "content": content}, user(content)]
            assert ChatTemplate(template).render(messages) == transformers_prompt(template, messages)

    def test_a_template_that_alternates_roles_is_tried_as_well(self) -> None:
        alternating = (
            "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('Roles must alternate') }}{% endif %}"
            "{% for part in message.content %}{{ part.text }};{% endfor %}{% endfor %}"
        )
        messages = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
        assert ChatTemplate(alternating).render(messages) == "a;b;c;"


class TestToolCalls:
    @pytest.mark.parametrize("arguments", ['{"zone": "Zürich"}', {"zone": "Zürich"}])
    @pytest.mark.parametrize(
        ("template", "shown"),
        [
            (SHOWS_ARGUMENTS_AS_JSON, '[user]Time?[assistant]now{"zone": "Zürich"}'),
            (CONCATENATES_ARGUMENTS, 'user: Time?now\n{"zone": "Zürich"}'),
        ],
    )
    def test_arguments_have_the_form_that_is_shown(self, template: str, shown: str, arguments: Any) -> None:
        assert ChatTemplate(template).render([user("Time?"), calling(arguments)]) == shown

    @pytest.mark.parametrize(
        ("arguments", "shown"),
        [("", "{}"), (" ", "{}"), (None, "{}"), ("{", '"{"'), ("[1]", "[1]"), ("[" * 9_999, json.dumps("[" * 9_999))],
    )
    def test_any_arguments_may_stand_in_the_history(self, arguments: Any, shown: str) -> None:
        rendered = ChatTemplate(SHOWS_ARGUMENTS_AS_JSON).render([user("Time?"), calling(arguments)])
        assert rendered == f"[user]Time?[assistant]now{shown}"

    def test_a_template_that_knows_no_calls_gets_an_empty_content(self) -> None:
        plain = ChatTemplate(CHATML_TEMPLATE)
        assert plain.render([user("Time?"), calling("{}")]) == plain.render([user("Time?"), calling("{}", content="")])

    def test_content_beside_calls_is_kept(self) -> None:
        rendered = ChatTemplate(SHOWS_ARGUMENTS_AS_JSON).render([user("Time?"), calling("{}", content="Let me see.")])
        assert rendered == "[user]Time?[assistant]Let me see.now{}"


class TestFields:
    def test_null_fields_are_not_there(self) -> None:
        nulls = {"name": None, "tool_calls": None, "reasoning_content": None, "refusal": None}
        messages = [user("hi") | nulls, {"role": "assistant", "content": "yes"} | nulls]
        rendered = ChatTemplate(TESTS_WHAT_IS_DEFINED).render(messages)
        assert rendered == "user: hi\nassistant: yes\n" == transformers_prompt(TESTS_WHAT_IS_DEFINED, messages)

    def test_no_calls_are_no_field(self) -> None:
        messages = [{"role": "assistant", "content": "yes", "tool_calls": []}]
        assert ChatTemplate(TESTS_WHAT_IS_DEFINED).render(messages) == "assistant: yes\n"

    def test_fields_that_say_something_are_there(self) -> None:
        messages = [user("hi") | {"name": "Ann"}, {"role": "assistant", "content": "yes", "reasoning_content": ""}]
        rendered = ChatTemplate(TESTS_WHAT_IS_DEFINED).render(messages)
        assert rendered == "user named: hi\nassistant thinks: yes\n"

    @pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
    def test_reasoning_has_one_name(self, name: str) -> None:
        template = "{% for message in messages %}{{ message.reasoning_content }}{{ message.thinking }}{% endfor %}"
        messages = [{"role": "assistant", "content": "yes", name: "hm"}]
        assert ChatTemplate(template).render(messages) == "hmhm"

    def test_documents_are_defined_without_any(self) -> None:
        template = "{{ documents is defined }}{{ tools is defined }}{{ tools is none }}{{ documents is none }}"
        assert ChatTemplate(template).render([user("hi")]) == transformers_prompt(template, [user("hi")])


class TestNamedTokens:
    def test_all_are_there_by_name(self) -> None:
        rendered = ChatTemplate(NAMES_TOKENS, special_tokens=TOKENS).render([user("hi")])
        assert rendered == "<bos><eos><pad><unk><sep><cls><mask><image>"

    def test_absent_ones_print_nothing(self) -> None:
        tokens = {"absent_token": None, "pad_token": "<pad>"}
        assert ChatTemplate(NAMES_TOKENS, special_tokens=tokens, eos_token="</s>").render([user("hi")]) == "</s><pad>"

    def test_none_replaces_the_messages(self) -> None:
        template = ChatTemplate("{{ messages[0].content }}", special_tokens={"messages": "x", "tools": "y"})
        assert template.render([user("hi")]) == "hi"
