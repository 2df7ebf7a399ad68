from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from app.errors import RequestError
from app.store import ModelFiles
from app.store.gguf_tokenizer import build_tokenizer
from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from tests.byte_tokenizer import CHATML_TEMPLATE, IM_END_ID, IM_START_ID, build_byte_tokenizer
from tests.gguf_metadata import sentencepiece_metadata

Message = dict[str, Any]

BYTE_LEVEL = Tokenizer(build_byte_tokenizer().to_str())
CHATML = ChatTemplate(CHATML_TEMPLATE)

LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
THINKING_TEMPLATE = """
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
TOOLS_TEMPLATE = """{% if tools %}Tools:
{% for tool in tools %}
    {{ tool | tojson }}
{% endfor %}
{% endif %}
{% for message in messages %}
    {% if loop.index > 9 %}{% break %}{% endif %}
    {% generation %}{{ message.role }}: {{ message.content }}{% endgeneration %}

    {% for call in message.tool_calls %}
call {{ call.function.name }} {{ call.function.arguments | tojson(indent=2) }}
    {% endfor %}
{% endfor %}"""
PARTS_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)

TOOL = {"type": "function", "function": {"name": "f", "description": "a < b & 'é'", "parameters": {"type": "object"}}}


def user(content: Any) -> list[Message]:
    return [{"role": "user", "content": content}]


class TestRender:
    @pytest.mark.parametrize(
        ("template", "messages"),
        [
            (CHATML_TEMPLATE, [*user("  hi \n"), {"role": "assistant", "content": "yes"}, *user("<b>&amp;</b> 'é'")]),
            (LLAMA2_TEMPLATE, [{"role": "system", "content": "Be brief."}, *user(" hi ")]),
            (THINKING_TEMPLATE, [*user("hi"), {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}]),
            (TOOLS_TEMPLATE, user("hi") * 12),
        ],
    )
    def test_is_what_transformers_renders(self, template: str, messages: list[Message]) -> None:
        options: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
        [reference], _ = render_jinja_template(
            [messages], tools=[TOOL], chat_template=template, add_generation_prompt=True, **options
        )
        assert ChatTemplate(template, **options).render(messages, tools=[TOOL]) == reference

    def test_the_real_template_names_its_default_system_prompt(self, smollm2: ModelFiles) -> None:
        rendered = ChatTemplate(smollm2.chat_template).render(user("hi"))
        assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")

    def test_the_generation_prompt_can_be_left_out(self) -> None:
        assert CHATML.render(user("hi"), add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"

    def test_allowed_variables_reach_the_template(self) -> None:
        rendered = ChatTemplate(THINKING_TEMPLATE).render(user("hi"), template_kwargs={"enable_thinking": False})
        assert rendered.endswith("<think>\n\n</think>\n\n")

    def test_a_tool_call_s_arguments_are_an_object(self) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Zürich"}'}}
        rendered = ChatTemplate(TOOLS_TEMPLATE).render([{"role": "assistant", "content": None, "tool_calls": [call]}])
        assert 'call f {\n  "city": "Zürich"\n}' in rendered

    def test_the_date_is_available(self) -> None:
        assert ChatTemplate("{{ strftime_now('%Y') }}").render([]).startswith("20")

    def test_a_name_that_is_not_set_prints_nothing(self) -> None:
        assert ChatTemplate("{{ bos_token }}x{% if not eos_token %}y{% endif %}").render([]) == "xy"


class TestContent:
    def test_text_parts_become_lines_of_a_string(self) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        assert CHATML.render(user(parts)) == CHATML.render(user("one\ntwo"))

    def test_a_template_that_loops_over_parts_gets_parts(self) -> None:
        template = ChatTemplate(PARTS_TEMPLATE)
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        assert template.render(user(parts)) == "<|im_start|>user\nonetwo<|im_end|>\n"
        assert template.render(user("one")) == "<|im_start|>user\none<|im_end|>\n"

    def test_absent_content_is_empty(self) -> None:
        assert CHATML.render([{"role": "assistant"}]) == CHATML.render([{"role": "assistant", "content": ""}])

    @pytest.mark.parametrize(
        ("message", "named"),
        [
            ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "'image_url'"),
            ({"role": "user", "content": [{"text": "x"}]}, "type"),
            ({"role": "user", "content": {"text": "x"}}, "content"),
            ({"role": "<|im_end|>", "content": "x"}, "role"),
            ({"content": "x"}, "role"),
            ({"role": "assistant", "tool_calls": 5}, "tool_calls"),
        ],
    )
    def test_what_is_not_supported_is_named(self, message: Message, named: str) -> None:
        with pytest.raises(RequestError, match=named) as caught:
            CHATML.render([message])
        assert (caught.value.status, caught.value.param) == (400, "messages")


class TestContinueFinalMessage:
    def render(self, template: str, content: Any) -> str:
        messages = [*user("hi"), {"role": "assistant", "content": content}]
        return ChatTemplate(template, bos_token="<s>", eos_token="</s>").render(
            messages, add_generation_prompt=False, continue_final_message=True
        )

    def test_the_turn_is_left_open(self) -> None:
        assert self.render(CHATML_TEMPLATE, "sure, ").endswith("<|im_start|>assistant\nsure, ")

    def test_a_template_that_trims_still_trims(self) -> None:
        assert self.render(LLAMA2_TEMPLATE, "sure, ").endswith("[/INST] sure,")

    def test_parts_are_continued_too(self) -> None:
        assert self.render(PARTS_TEMPLATE, [{"type": "text", "text": "sure"}]).endswith("assistant\nsure")

    def test_a_message_the_template_leaves_out_cannot_be_continued(self) -> None:
        with pytest.raises(RequestError, match="does not show"):
            self.render("nothing", "x")

    def test_there_must_be_something_to_continue(self) -> None:
        with pytest.raises(RequestError, match="no final message"):
            CHATML.render([], add_generation_prompt=False, continue_final_message=True)

    def test_a_new_turn_cannot_be_opened_as_well(self) -> None:
        with pytest.raises(RequestError, match="add_generation_prompt"):
            CHATML.render(user("x"), continue_final_message=True)


class TestErrors:
    @pytest.mark.parametrize(
        ("source", "named"),
        [
            (None, "no chat template"),
            ("{% for %}", "broken"),
            ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
            ("{{ messages[0].nothing.at_all }}", "nothing"),
            ("{{ messages[0].content + 1 }}", "str"),
            ("{{ messages.append(1) }}", "append"),
            ("{{ ''.__class__.__mro__ }}", "unsafe"),
            ("{% for i in range(10 ** 9) %}x{% endfor %}", "[Rr]ange"),
        ],
    )
    def test_a_template_s_failure_is_the_request_s_error(self, source: str | None, named: str) -> None:
        with pytest.raises(RequestError, match=named) as caught:
            ChatTemplate(source).render(user("hi"))
        assert (caught.value.status, caught.value.code) == (400, "chat_template_error")

    def test_output_is_bounded(self) -> None:
        endless = "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}"
        with pytest.raises(RequestError, match="more than 1000 characters"):
            ChatTemplate(endless, max_chars=1000).render([])

    @pytest.mark.parametrize(
        "name", ["messages", "tools", "add_generation_prompt", "bos_token", "raise_exception", "range"]
    )
    def test_variables_that_come_from_elsewhere_are_refused(self, name: str) -> None:
        template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", bos_token="<s>")
        with pytest.raises(RequestError, match=f"cannot set {name}") as caught:
            template.render(user("hi"), template_kwargs={"thinking": 1, name: "x"})
        assert caught.value.param == "chat_template_kwargs"

    def test_any_other_variable_reaches_the_template(self) -> None:
        template = ChatTemplate(
            "{% if mood is defined %}{{ mood.kind }}{% endif %}{% set tone = tone or 'dull' %}{{ tone }}"
            "{% macro say(text) %}{{ text }}{{ pitch }}{% endmacro %}{{ say(messages[0].content) }}",
            named={"plain": "{{ messages[0].content }}"},
        )
        variables = {"mood": {"kind": "merry"}, "tone": "high", "pitch": "!", "text": 1, "say": 1, "other": 1}
        assert template.render(user("hi"), template_kwargs=variables) == "merryhighhi!"
        assert template.render(user("hi")) == "dullhi"
        assert template.unread(variables) == ["text", "say", "other"]
        assert template.unread(variables, template="plain") == list(variables)
        assert template.unread(variables, template="none of it") == []


class TestEncode:
    def test_the_template_s_control_tokens_are_special_those_in_messages_are_not(self) -> None:
        encoded = CHATML.encode(user("a<|im_end|>"), BYTE_LEVEL)
        assert encoded == [
            *(IM_START_ID, *b"user\n", *b"a<|im_end|>", IM_END_ID, *b"\n"),
            *(IM_START_ID, *b"assistant\n"),
        ]

    def test_bos_comes_from_the_template_alone(self) -> None:
        tokenizer = Tokenizer(build_tokenizer(sentencepiece_metadata()).to_str(), add_bos=True, bos_token="<s>")
        template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", bos_token="<s>")
        assert template.encode(user("the"), tokenizer).count(1) == 1
        assert ChatTemplate("{{ messages[0].content }}").encode(user("the"), tokenizer).count(1) == 0

    @pytest.mark.parametrize("template", [CHATML_TEMPLATE, THINKING_TEMPLATE, PARTS_TEMPLATE])
    @settings(max_examples=40)
    @given(
        contents=st.lists(
            st.lists(
                st.sampled_from(
                    ["<|im_end|>", "<|im_start|>", "<|im", "_end|>", "<", "</think>", " x", "\n", "é", "s>"]
                ),
                max_size=6,
            ).map("".join),
            min_size=1,
            max_size=4,
        )
    )
    def test_messages_never_add_a_control_token(
        self, smollm2_tokenizer: Tokenizer, template: str, contents: list[str]
    ) -> None:
        messages = [{"role": "assistant", "content": [{"type": "text", "text": text} for text in contents]}]
        encoded = ChatTemplate(template).encode(messages, smollm2_tokenizer)
        benign = ChatTemplate(template).encode([{"role": "assistant", "content": "x"}], smollm2_tokenizer)
        assert [i for i in encoded if i in (1, 2)] == [i for i in benign if i in (1, 2)]
        rendered = ChatTemplate(template).render(messages)
        assert smollm2_tokenizer.decode(encoded, skip_special_tokens=False) == rendered

    @given(content=st.text("abc <|>\n\té你0", max_size=30))
    def test_without_control_tokens_it_is_the_plain_encoding(self, smollm2_tokenizer: Tokenizer, content: str) -> None:
        encoded = CHATML.encode(user(content), smollm2_tokenizer)
        rendered = CHATML.render(user(content))
        assert encoded == smollm2_tokenizer.encode(rendered, add_special_tokens=False, parse_special=True)

    def test_with_control_tokens_the_rest_is_spelt_as_ever(self, smollm2_tokenizer: Tokenizer) -> None:
        content = "the <|im_end|> of it"
        plain = smollm2_tokenizer.encode(f"user\n{content}")
        encoded = CHATML.encode(user(content), smollm2_tokenizer, add_generation_prompt=False)
        assert encoded == [1, *plain, 2, *smollm2_tokenizer.encode("\n")]

    def test_a_template_may_split_a_message_that_holds_a_control_token(self) -> None:
        messages = [{"role": "assistant", "content": "<think><|im_end|></think>\n\nyes <|im_start|>"}]
        encoded = ChatTemplate(THINKING_TEMPLATE).encode(messages, BYTE_LEVEL, add_generation_prompt=False)
        assert encoded == [IM_START_ID, *b"assistant\nyes <|im_start|>", IM_END_ID, *b"\n"]

    def test_tools_calls_and_variables_are_guarded(self) -> None:
        escaped = json.dumps({"x": "<|im_end|>"}).replace("<", "\\u003c")
        call = {"function": {"name": "<|im_end|>", "arguments": escaped}}
        source = "{{ tools | tojson }}{{ messages[0].tool_calls | tojson }}{{ documents | tojson }}<|im_start|>"
        encoded = ChatTemplate(source).encode(
            [{"role": "assistant", "tool_calls": [call]}],
            BYTE_LEVEL,
            tools=[{"type": "function", "function": {"name": "f", "description": "<|im_end|>", "<|im_end|>": 1}}],
            template_kwargs={"documents": [{"text": "<|im_end|>"}]},
        )
        assert [token_id for token_id in encoded if token_id > 255] == [IM_START_ID]
        assert BYTE_LEVEL.decode(encoded).count("<|im_end|>") == 5

    async def test_long_prompts_come_out_the_same_from_a_thread(self) -> None:
        messages = user("long <|im_end|> " * 5_000)
        assert await CHATML.encode_async(messages, BYTE_LEVEL) == CHATML.encode(messages, BYTE_LEVEL)

    @pytest.mark.parametrize(
        ("template", "messages", "leaves"),
        [
            (CHATML_TEMPLATE, user("hi"), False),
            (CHATML_TEMPLATE, user("long " * 2_000), True),
            (CHATML_TEMPLATE, user("hi") * 1_000, True),
            ("{% for i in range(messages | length * 9999) %}{{ i % 9 }}{% endfor %}", user("hi") * 9, True),
        ],
        ids=["short", "long", "many", "slow"],
    )
    async def test_long_conversations_are_rendered_in_a_thread(
        self, template: str, messages: list[Message], leaves: bool
    ) -> None:
        threads: list[int] = []

        class Noting(dict[str, Any]):
            def get(self, key: str, default: Any = None) -> Any:
                threads.append(threading.get_ident())
                return super().get(key, default)

        noting = [Noting(message) for message in messages]
        assert await ChatTemplate(template).encode_async(noting, BYTE_LEVEL) == ChatTemplate(template).encode(
            messages, BYTE_LEVEL
        )
        assert (threads[-1] != threading.get_ident()) == leaves


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: ModelFiles) -> Tokenizer:
    return Tokenizer.load(smollm2.tokenizer_file)
