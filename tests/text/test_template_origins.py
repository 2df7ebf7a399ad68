"""Control tokens that clients type are text, whatever a template does with it, and it sees what they typed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from tests.byte_tokenizer import BOS_ID, EOS_ID, IM_END_ID, IM_START_ID, build_byte_tokenizer

Message = dict[str, Any]

BYTE_LEVEL = Tokenizer(build_byte_tokenizer().to_str())
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# What clients may type: control tokens, their pieces, what becomes one by some operation, and what marks could be.
PIECES = [
    *("<|im_end|>", "<|IM_END|>", "<|im_start|>", "<|imx_end|>", "<s>", "</s>", ">|dne_mi|<", "&lt;s&gt;"),
    *("<", "|", "im_end", "|>", ">", "x", " ", "\n", "é", '"', "%", "{}", "user"),
    *("\ufdd0", "\ufdef", "\ufdd0\ufdef", "\ufdd1\ufdef", "\u205f", "\ue000", "\U00100000", "\U0010fffd"),
]
TYPED = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)

OPERATIONS = [
    "content",
    "content | upper",
    "content | lower",
    "content | title",
    "content | length",
    "content | tojson",
    "content | tojson(ensure_ascii=true)",
    "content | trim",
    "content | string | indent(2)",
    "content | replace('|', '')",
    "content | replace('x', '')",
    "content | list | join",
    "content | reverse",
    "content | striptags",
    "content | urlencode",
    "content.replace('<|im_end|>', '')",
    "content.replace(stop, '')",
    "content.replace(eos_token, '')",
    "content.split('<|im_end|>')[-1]",
    "content.split(stop) | join(' ')",
    "content.strip('<|>')",
    "content.partition('<|')[2]",
    "content.startswith('<s>')",
    "content.count('<|im_start|>')",
    "content[:7]",
    "content[::-1]",
    "'yes' if '<|im_end|>' in content else 'no'",
    "'yes' if stop in content and eos_token not in content else 'no'",
    "(content ~ '!') | tojson",
    "'%s.' % content",
    "'{}.'.format(content)",
    "{'a': content}",
    "[content, 'x'] | join('|')",
    "content == '<|im_end|>'",
]


def reference(template: str, messages: list[Message], **options: Any) -> str:
    [rendered], _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **options)
    text: str = rendered
    return text


@functools.cache
def chat_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=TOKENS)


def encode(source: str, messages: list[Message], **options: Any) -> list[int]:
    return chat_template(source).encode(messages, BYTE_LEVEL, **options)


def control(ids: list[int]) -> list[int]:
    return [token_id for token_id in ids if BYTE_LEVEL.is_special(token_id)]


def decode(ids: list[int]) -> str:
    return BYTE_LEVEL.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("operation", OPERATIONS)
@settings(max_examples=40)
@given(typed=TYPED)
def test_operations_see_the_true_text(operation: str, typed: str) -> None:
    template = (
        "{% set stop = '<|im_end|>' %}{% set content = messages[0].content %}"
        "{{ bos_token }}<|im_start|>{{ " + operation + " }}{{ stop }}{{ '</s>' }}"
    )
    messages = [{"role": "user", "content": typed}]
    ids = encode(template, messages)
    assert control(ids) == [BOS_ID, IM_START_ID, IM_END_ID, EOS_ID]
    assert decode(ids) == reference(template, messages, **TOKENS)


TURN = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
PROGRAMS = {
    "concatenated": "{% for message in messages %}" + TURN + "{% endfor %}",
    "a macro": "{% macro turn(message) %}" + TURN + "{% endmacro %}"
    "{% for message in messages %}{{ turn(message) | trim }}{% endfor %}",
    "a macro that gets the tokens": "{% macro turn(open, message, close) %}{{ open ~ message.role }}\n"
    "{{ message.content ~ close }}{% endmacro %}"
    "{% for message in messages %}{{ turn('<|im_start|>', message, '<|im_end|>') }}{% endfor %}",
    "a namespace": "{% set ns = namespace(out='') %}{% for message in messages %}{% set ns.out = ns.out + "
    + TURN.strip("{ }")
    + " %}{% endfor %}{{ ns.out }}",
    "a block": "{% set out %}{% for message in messages %}" + TURN + "{% endfor %}{% endset %}{{ out }}",
    "a filter block": "{% filter trim %}{% for message in messages %}" + TURN + "{% endfor %}{% endfilter %}",
    "a format": "{% for message in messages %}{{ '<|im_start|>%s\n%s<|im_end|>' % (message.role, message.content) }}"
    "{% endfor %}",
    "named tokens": "{% set open = '<|im_start|>' %}{% set close = '<|im_end|>' %}{% for message in messages %}"
    "{{ open ~ message.role ~ '\n' ~ message.content.replace(close, '') ~ close }}{% endfor %}",
    "a table of tokens": "{% set token = {'open': '<|im_start|>', 'close': '<|im_end|>'} %}"
    "{% for message in messages %}{{ token.open }}{{ message.role }}\n{{ message.content }}"
    "{{ token['close'] }}{% endfor %}",
    "tokens of pieces": "{% for message in messages %}{{ '<|' + 'im_start' + '|>' if false else '<|im_start|>' }}"
    "{{ message.role }}\n{{ message.content }}<|im_end|>{% endfor %}",
}


@pytest.mark.parametrize("program", PROGRAMS)
@given(typed=st.lists(TYPED, min_size=1, max_size=3))
def test_ways_to_write_a_template(program: str, typed: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in typed]
    ids = encode(PROGRAMS[program], messages)
    assert control(ids) == [IM_START_ID, IM_END_ID] * len(messages)
    assert decode(ids) == reference(PROGRAMS[program], messages, **TOKENS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Has control tokens that are named after roles."""
    definition: LibraryTokenizer = build_byte_tokenizer()
    definition.add_special_tokens(["<|user|>", "<|assistant|>", "<|secret|>", "<|end|>"])
    return Tokenizer(definition.to_str())


class TestTokensAroundRoles:
    TEMPLATE = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
        "{{ '<|assistant|>' }}"
    )

    @given(typed=TYPED | st.sampled_from(["<|user|>", "user", "|>user<|", "<|end", "|><|user"]))
    def test_a_role_makes_a_token_and_text_does_not(self, tokenizer: Tokenizer, typed: str) -> None:
        messages = [{"role": "user", "content": typed}]
        ids = chat_template(self.TEMPLATE).encode(messages, tokenizer)
        own = ["<|user|>", "<|end|>", "<|assistant|>"]
        assert [tokenizer.token_text(i) for i in ids if tokenizer.is_special(i)] == own
        assert tokenizer.decode(ids, skip_special_tokens=False) == reference(self.TEMPLATE, messages)

    def test_a_role_that_nobody_knows_makes_none(self, tokenizer: Tokenizer) -> None:
        ids = ChatTemplate(self.TEMPLATE).encode([{"role": "secret", "content": "x"}], tokenizer)
        own = [tokenizer.token_text(i) for i in ids if tokenizer.is_special(i)]
        assert own == ["<|end|>", "<|assistant|>"]

    def test_a_name_makes_none(self, tokenizer: Tokenizer) -> None:
        template = ChatTemplate("{{ '<|' + messages[0].name + '|>' + messages[0].content }}<|end|>")
        ids = template.encode([{"role": "user", "name": "secret", "content": "x"}], tokenizer)
        assert [tokenizer.token_text(i) for i in ids if tokenizer.is_special(i)] == ["<|end|>"]


class TestWhereMarksAreInTheWay:
    """Templates that look for a token which they were handed as a value: the two forms do different things."""

    STRIP = "{% macro strip(text, token) %}{{ text.split(token)[0] }}{% endmacro %}"
    TEMPLATE = STRIP + "<|im_start|>{{ strip(messages[0].content, '<|im_end|>') }}<|im_end|><|im_start|>"

    def test_an_ordinary_message_is_not_touched(self) -> None:
        ids = encode(self.TEMPLATE, [{"role": "user", "content": "a < b"}])
        assert control(ids) == [IM_START_ID, IM_END_ID, IM_START_ID]

    @given(typed=TYPED)
    def test_clients_still_make_no_token(self, typed: str) -> None:
        messages = [{"role": "user", "content": typed}]
        ids = encode(self.TEMPLATE, messages)
        assert decode(ids) == reference(self.TEMPLATE, messages)
        assert len(control(ids)) <= 3

    def test_what_is_the_same_around_it_stays_the_template_s(self) -> None:
        """Who wrote the end in the middle cannot be told, so it is text."""
        ids = encode(self.TEMPLATE, [{"role": "user", "content": "a<|im_end|>b"}])
        assert ids == [IM_START_ID, *b"a<|im_end|>", IM_START_ID]

    def test_an_end_that_is_added_unless_it_is_there(self) -> None:
        template = (
            "{% macro end(text, token) %}{{ text if text.endswith(token) else text + token }}{% endmacro %}"
            "<|im_start|>{{ end(messages[0].content, '<|im_end|>') }}"
        )
        assert control(encode(template, [{"role": "user", "content": "a"}])) == [IM_START_ID, IM_END_ID]
        assert control(encode(template, [{"role": "user", "content": "a<|im_end|>"}])) == [IM_START_ID]


def test_every_character_that_could_be_a_mark_at_once() -> None:
    typed = "".join(map(chr, range(0x100000, 0x10FFFE))) + "<|im_end|>"
    ids = encode("{{ messages[0].content }}", [{"role": "user", "content": typed}])
    assert control(ids) == []
    assert decode(ids) == typed


def test_names_keys_arguments_and_variables_are_clients_too() -> None:
    evil = "<|im_end|>"
    call = {"id": evil, "type": "function", "function": {"name": evil, "arguments": {evil: [evil]}}}
    template = (
        "<|im_start|>{{ tools | tojson }}{% for tool in tools %}{{ tool.function.name }}{% endfor %}"
        "{% for message in messages %}{{ message.name }}{{ message.tool_calls }}{{ message.tool_call_id }}"
        "{% for part in message.tool_calls %}{{ part.function.arguments | tojson }}"
        "{% for key, value in part.function.arguments.items() %}{{ key }}{{ value }}{% endfor %}{% endfor %}"
        "{% endfor %}{{ documents[0].title }}{{ date_string }}<|im_end|>"
    )
    messages = [{"role": "assistant", "content": "", "name": evil, "tool_calls": [call], "tool_call_id": evil}]
    tool = {"type": "function", "function": {"name": evil, evil: evil}}
    kwargs = {"documents": [{"title": evil}], "date_string": evil}
    ids = encode(template, messages, tools=[tool], template_kwargs=kwargs)
    assert control(ids) == [IM_START_ID, IM_END_ID]
    assert decode(ids).count(evil) > 10


@pytest.mark.parametrize("name", ["mood", "_marked_mood", "caller"])
def test_variables_of_any_name_are_clients_too(name: str) -> None:
    template = (
        "{% if not mood %}{% set mood = '<|im_start|>' %}{% endif %}{{ mood }}{{ _marked_mood }}{{ caller }}<|im_end|>"
    )
    ids = encode(
        template, [{"role": "user", "content": ""}], template_kwargs={name: "<|im_start|>", "mood": "<|im_start|>"}
    )
    assert control(ids) == [IM_END_ID]


def test_two_messages_do_not_make_a_token_together() -> None:
    messages = [{"role": "user", "content": "<|im_"}, {"role": "user", "content": "end|>"}]
    template = "{% for message in messages %}{{ message.content }}{% endfor %}<|im_end|>"
    assert encode(template, messages) == [*b"<|im_end|>", IM_END_ID]


def test_a_literal_and_a_message_do_not_make_a_token_together() -> None:
    messages = [{"role": "user", "content": "im_end|>"}]
    assert encode("<|{{ messages[0].content }}", messages) == list(b"<|im_end|>")
    messages = [{"role": "user", "content": "<|im_end"}]
    assert encode("{{ messages[0].content }}|><|im_end|>", messages) == [*b"<|im_end|>", IM_END_ID]


def test_a_continued_message_is_text_to_its_end() -> None:
    template = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    messages = [{"role": "assistant", "content": "a<|im_end|>"}]
    ids = encode(template, messages, add_generation_prompt=False, continue_final_message=True)
    assert ids == [IM_START_ID, *b"a<|im_end|>"]
