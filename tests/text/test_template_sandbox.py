"""Templates that do too much are stopped, with the error of a template that fails."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from app.errors import RequestError
from app.text.chat_template import ChatTemplate
from app.text.long_work import CAPACITY
from app.text.template_sandbox import MAX_SOURCE_CHARS, Budget, OutOfBudgetError, TemplateEnvironment, spending
from app.text.tokenizer import Tokenizer
from tests.byte_tokenizer import build_byte_tokenizer

BYTE_LEVEL = Tokenizer(build_byte_tokenizer().to_str())
DOUBLING = (
    "{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{{% set ns.x = {} %}}{{% endfor %}}{{{{ ns.x }}}}"
)
BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop over a generator": "{% for i in range(99999) %}{% for j in range(99999) | map('string') %}{% endfor %}"
    "{% endfor %}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth0 < 60 }}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a call for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro's output": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% else %}{{ 'x' * 9999999 }}{% endif %}"
    "{% endmacro %}{{ f(8) }}",
    "repeated text": "{{ 'a' * 10 ** 10 }}",
    "repeated text, not at load": "{{ ('a' * (messages | length * 10 ** 10)) | length }}",
    "a repeated list": "{% set l = [0] * 10 ** 9 %}",
    "a power": "{{ 9 ** 99999999 % 7 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "sums": DOUBLING.format("ns.x + ns.x"),
    "concatenation": DOUBLING.format("ns.x ~ ns.x"),
    "joined": DOUBLING.format("[ns.x, ns.x] | join"),
    "a join of one long text": "{% set x = ['a' * 9999999] * 9999 %}{{ x | join | length }}",
    "a join by a long text": "{{ ('a' * 9999999).join(['b'] * 9999) | length }}",
    "replaced": "{% set x = 'a' * 9999999 %}{{ x | replace('a', x) | length }}",
    "replaced by a method": "{% set x = 'a' * 9999999 %}{{ x.replace('a', x) | length }}",
    "a wide %": "{{ '%999999999d' % 1 }}",
    "a wide format": "{{ '{:>9999999999}'.format(1) }}",
    "a wide format by argument": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "a centre": "{{ 'a' | center(5000000000) | length }}",
    "padding": "{{ 'a'.ljust(5000000000) | length }}",
    "tabs": "{{ ('\t' * 999999).expandtabs(9999999) | length }}",
    "indented lines": "{{ ('a\n' * 1000000) | indent(10000) | length }}",
    "indented JSON": "{{ [[1]] | tojson(indent=1000000000) }}",
    "wrapped text": "{{ ('a ' * 3000000) | wordwrap(1) | length }}",
    "a long source": "a" * (MAX_SOURCE_CHARS + 1),
    "nested loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "nested brackets": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_takes_too_much_is_refused(bomb: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(BOMBS[bomb]).render([{"role": "user", "content": "hi"}])
    assert (caught.value.status, caught.value.code) == (400, "chat_template_error")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (
            "{% for i in range(3) %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
            "1/3,2/3,3/3",
        ),
        ("{% for i in 'abc' | map('upper') %}{{ i }}{{ loop.revindex }}{% endfor %}", "A3B2C1"),
        ("{% for i in [] %}x{% else %}none{% endfor %}", "none"),
        ("{% for i in absent %}x{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{% for i in [1, 2, 3] if i % 2 %}{{ i }}{% endfor %}", "13"),
        ("{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
        (
            "{{ '-' * 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ '%s|%5.1f' % ('a', 2) }}{{ '{:>4}'.format(1) }}",
            "---10243a|  2.0   1",
        ),
        ("{{ 'a' | center(3) }}{{ 'a\nb' | indent(2) }}{{ ['a', 1] | join('-') }}", " a a\n  ba-1"),
        ("{{ [1] | tojson(indent=2) }}{{ 'aXb'.replace('X', '--') }}{{ '-'.join(['a', 'b']) }}", "[\n  1\n]a--ba-b"),
        ("{% macro f(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='?') }}", "a!b?"),
    ],
)
def test_what_takes_little_is_what_it_was(source: str, shown: str) -> None:
    assert ChatTemplate(source).render([]) == shown


def test_a_loop_that_messages_make_long_is_stopped_too() -> None:
    squares = ChatTemplate(
        "{% for a in messages %}{% for b in messages %}{% for c in messages %}{% endfor %}{% endfor %}{% endfor %}"
    )
    assert squares.render([{"role": "user", "content": "hi"}] * 10) == ""
    with pytest.raises(RequestError, match="too many steps"):
        squares.render([{"role": "user", "content": "hi"}] * 1_000)


def test_time_is_bounded() -> None:
    template = TemplateEnvironment()
    tree = template.parse_bounded(
        "{% macro f(n) %}{% for i in range(2) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(30) }}"
    )
    with spending(Budget(10**12, 0.05)), pytest.raises(OutOfBudgetError, match="too long"):
        template.from_string(tree).render()


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> ChatTemplate:
    """Renders for longer than anybody waits."""
    monkeypatch.setattr("app.text.chat_template.MAX_SECONDS", 1e6)
    monkeypatch.setattr("app.text.chat_template.MAX_STEPS", 10**15)
    return ChatTemplate(
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60 if messages[0].content == 'go' else 0) }}"
    )


async def test_nobody_renders_for_a_client_that_has_gone(endless: ChatTemplate) -> None:
    entered = threading.Event()

    class Noting(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            if threading.current_thread() is not threading.main_thread():
                entered.set()
            return super().get(key, default)

    task = asyncio.create_task(endless.encode_async([Noting(role="user", content="go")], BYTE_LEVEL))
    await asyncio.to_thread(entered.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await BYTE_LEVEL.long_work.run(CAPACITY, lambda: None)  # waits for the thread


async def test_nobody_renders_past_the_request_s_deadline(endless: ChatTemplate) -> None:
    with pytest.raises(RequestError) as raised:
        await endless.encode_async([{"role": "user", "content": "go"}], BYTE_LEVEL, deadline=time.monotonic() + 0.1)
    assert (raised.value.status, raised.value.code) == (504, "deadline_exceeded")
    await BYTE_LEVEL.long_work.run(CAPACITY, lambda: None)  # waits for the thread


async def test_waiting_for_a_turn_is_no_time_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.text.chat_template.MAX_SECONDS", 0.5)
    template = ChatTemplate("{% for i in range(messages | length) %}{{ i % 9 }}{% endfor %}")
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        done.wait()

    busy = asyncio.create_task(BYTE_LEVEL.long_work.run(CAPACITY, work))
    await asyncio.to_thread(begun.wait)
    encoding = asyncio.create_task(template.encode_async([{"role": "user", "content": "x" * 100}] * 100, BYTE_LEVEL))
    await asyncio.sleep(0.6)
    done.set()
    await busy
    assert len(await encoding) == 100
