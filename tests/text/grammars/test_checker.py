"""Trials of grammars in a process: what is refused, and that nothing which happens there happens here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from app.errors import RequestError
from app.text.grammars import checker as checking
from app.text.grammars.checker import GrammarChecker, TrialBounds
from app.text.grammars.grammar import Grammar


@pytest.fixture
async def checker() -> AsyncIterator[GrammarChecker]:
    made = GrammarChecker()
    yield made
    made.close()


async def refusal(checker: GrammarChecker, text: str) -> RequestError:
    with pytest.raises(RequestError) as refused:
        await checker.check(Grammar(text), param="grammar")
    assert refused.value.param == "grammar"
    return refused.value


def doubling(levels: int) -> str:
    rules = [f"T{level}: T{level - 1} T{level - 1}" for level in range(1, levels + 1)]
    return "\n".join([f"start: T{levels}", 'T0: "a" | "b"', *rules])


async def test_sound_grammars_pass_and_others_say_why(checker: GrammarChecker) -> None:
    for text in ('start: "a"', 'start: ""', 'start: <|tag|> "a" <[5,1000-1010]>', 'start: %json {"type":"object"}'):
        await checker.check(Grammar(text), param="grammar")
    await checker.check(Grammar("start: @part", {"part": 'start: "x"'}), param="grammar")
    assert "nothing" in (await refusal(checker, "start: nothing")).message
    assert (await refusal(checker, "start: round\nround: round")).message == "grammar: it allows no text."
    assert (await refusal(checker, 'start: "a" round\nround: round')).message == "grammar: it allows no text."
    assert "too big" in (await refusal(checker, doubling(40))).message
    assert (
        "unsatisfiable"
        in (
            await refusal(checker, 'start: %json {"required":["a"],"additionalProperties":false,"type":"object"}')
        ).message.lower()
    )


async def test_what_is_only_too_large_when_used_is_refused(checker: GrammarChecker) -> None:
    properties = ",".join(f'"p{index}":true' for index in range(2000))
    assert (
        "items" in (await refusal(checker, f'start: %json {{"type":"object","properties":{{{properties}}}}}')).message
    )


async def test_a_process_that_dies_is_started_anew() -> None:
    checker = GrammarChecker(TrialBounds(memory=1 << 20))
    assert "cannot be compiled with 1 MiB" in (await refusal(checker, 'start: "a"')).message
    checker.close()
    checker = GrammarChecker(TrialBounds(wall_clock=0))
    assert "takes too long" in (await refusal(checker, 'start: "a"')).message
    assert "takes too long" in (await refusal(checker, 'start: "b"')).message
    checker.close()


async def test_equal_grammars_are_tried_once_and_those_waiting_are_bounded(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "MAX_WAITING", 2)
    grammars = [Grammar('start: "a"')] * 5 + [Grammar('start: "b"')] + [Grammar('start: "c"')]
    results = await asyncio.gather(*(checker.check(each, param="g") for each in grammars), return_exceptions=True)
    assert results[:6] == [None] * 6
    assert isinstance(results[6], RequestError)
    assert (results[6].status, results[6].retry_after) == (429, 1.0)


async def test_a_deadline_ends_the_wait(checker: GrammarChecker) -> None:
    with pytest.raises(RequestError) as late:
        await checker.check(Grammar('start: "a"'), param="g", deadline=time.monotonic())
    assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
    await checker.check(Grammar('start: "a"'), param="g")


async def test_none_is_tried_after_the_end(checker: GrammarChecker) -> None:
    await checker.check(Grammar('start: "a"'), param="g")
    checker.close()
    checker.close()
    await checker.check(Grammar('start: "a"'), param="g")  # it is known
