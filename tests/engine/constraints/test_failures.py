"""Grammars that do not compile, cannot be followed, or whose vocabulary is missing: errors, never free text."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from app.contract.constraints import PARSER_LIMITS
from app.contract.request import FinishReason
from app.engine.constraints import compiler, guidance
from app.engine.constraints.base import ConstraintError
from tests.engine.constraints.rig import ConstrainedEngine, byte_runner, constrained
from tests.engine.harness import wait_until
from tests.fakes import fake_request


@pytest.mark.parametrize("grammar", ["start: nobody", "start: (", 'start: %json {"type": "nothing"}', "start: /a{/"])
def test_a_grammar_that_does_not_compile_is_the_clients_error(grammar: str) -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", grammar), fake_request("b", b"free", 3))
    engine.run()
    error = engine.last["a"].error
    assert error is not None
    assert error.code == "invalid_constraint"
    assert error.message.startswith("the grammar does not compile: ")
    assert "\n" not in error.message
    assert len(error.message) < 400
    assert engine.tokens["a"] == []
    assert len(engine.tokens["b"]) == 3


def test_without_a_vocabulary_nothing_is_generated() -> None:
    engine = ConstrainedEngine(vocabulary=False)
    engine.add(constrained("a", "start: /[0-9]/"))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}


def test_a_mask_that_cannot_be_made_fails_its_row_alone(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    fill = guidance.GuidanceConstraint.fill
    calls = 0

    def failing(self: Any, words: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ConstraintError("too complex")
        fill(self, words)

    engine = ConstrainedEngine(pipeline_depth=depth)
    engine.add(constrained("a", "start: /[0-9]{9}/"), constrained("b", "start: /[0-9]{9}/"), fake_request("c", b"c", 9))
    engine.compile()
    monkeypatch.setattr(guidance.GuidanceConstraint, "fill", failing)
    engine.run()
    assert list(engine.errors().values()) == ["engine_error"]
    (failed,) = engine.errors()
    other = "ab".replace(failed, "")
    assert len(engine.text(other)) == 9
    assert len(engine.tokens["c"]) == 9


def test_a_grammar_that_becomes_too_complex_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARSER_LIMITS, "step_lexer_fuel", 300)
    engine = ConstrainedEngine(byte_runner(next_token=lambda _: ord("a")))
    engine.add(constrained("a", "start: /[ab]*a[ab]{12}c/"), fake_request("b", b"free", 5))
    engine.run()
    assert engine.errors() == {"a": "invalid_constraint"}
    assert len(engine.tokens["b"]) == 5


def test_a_step_that_fails_ends_its_constrained_requests_only() -> None:
    runner = byte_runner(fail_submit=lambda step: step.step == 1)
    engine = ConstrainedEngine(runner)
    engine.add(constrained("a", "start: /[0-9]{9}/"))
    engine.run()
    engine.add(constrained("b", "start: /[0-9]{9}/"))
    engine.run()
    assert engine.errors() == {"a": "engine_error"}
    assert len(engine.text("b")) == 9


class SlowMaker:
    """Compiles nothing before it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.sources: list[str] = []
        real = guidance.GuidanceCompiler.compile

        def compile_later(compiler: Any, source: str) -> Any:
            self.sources.append(source)
            self.go.wait(20)
            return real(compiler, source)

        monkeypatch.setattr(guidance.GuidanceCompiler, "compile", compile_later)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    maker = SlowMaker(monkeypatch)
    yield maker
    maker.go.set()


def test_others_are_served_while_a_grammar_compiles(slow: SlowMaker) -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", "start: /[0-9]/"))
    assert not engine.core.has_work
    assert engine.stats.num_waiting == 1
    engine.add(fake_request("b", b"free", 5))
    while "b" not in engine.last:
        engine.step()
    assert not engine.core.has_work
    assert engine.core.longest_pause is not None
    slow.go.set()
    engine.run()
    assert engine.order == ["b", "a"]


def test_a_request_that_compiles_can_be_aborted_and_expires(slow: SlowMaker) -> None:
    engine = ConstrainedEngine()
    engine.add(constrained("a", "start: /[0-9]/"), constrained("b", "start: /[0-9]/", deadline=5.0))
    engine.core.abort(["a"])
    engine.step()
    assert engine.last["a"].finish_reason is FinishReason.ABORT
    assert not engine.core.has_work
    engine.now = 4.9
    assert engine.core.longest_pause == pytest.approx(0.1)
    engine.now = 5.1
    engine.core.tend()
    engine.step()
    assert engine.errors() == {"b": "deadline_exceeded"}
    slow.go.set()
    wait_until(lambda: engine.core.has_work)  # nobody waits for the grammar any more
    engine.run()


def test_equal_grammars_are_compiled_once(slow: SlowMaker) -> None:
    engine = ConstrainedEngine()
    engine.add(*(constrained(str(i), "start: /[0-9]{3}/") for i in range(4)))
    slow.go.set()
    engine.run()
    engine.add(constrained("later", "start: /[0-9]{3}/"))
    engine.run()
    assert len(slow.sources) == 1
    assert len(engine.text("later")) == 3


def test_a_grammar_that_takes_too_long_is_given_up(slow: SlowMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MAX_SECONDS", 0.0)
    engine = ConstrainedEngine()
    engine.add(*(constrained(str(i), f"start: /[0-9]{{{i + 1}}}/") for i in range(3)))
    engine.run()
    assert engine.errors() == dict.fromkeys("012", "invalid_constraint")


def test_a_grammar_is_bounded_in_length_and_so_are_those_that_wait(
    slow: SlowMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "MAX_PENDING", 2)
    engine = ConstrainedEngine()
    engine.add(constrained("long", "start: " + '"a" ' * (compiler.MAX_SOURCE // 4)))
    engine.add(*(constrained(str(i), f"start: /[0-9]{{{i + 1}}}/") for i in range(3)))
    slow.go.set()
    engine.run()
    assert engine.errors() == {"long": "invalid_constraint", "2": "overloaded"}
