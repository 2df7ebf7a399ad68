"""Adapters in the engine: slots, prefixes apart, and how they come and go beside running requests."""

from __future__ import annotations

import pytest

from app.contract.config import AdapterSource
from app.contract.frames import AdapterOutcome
from tests.engine.harness import Harness, wait_until
from tests.fake_adapters import AdaptedRunner
from tests.fakes import FakeRunner, expected_tokens, fake_request

PROMPT = [(7 * i) % 1000 for i in range(40)]
SOURCES = (AdapterSource("a", "/a"), AdapterSource("b", "/b"))


def harness(*sources: AdapterSource, max_adapters: int = 2, **config: object) -> tuple[Harness, AdaptedRunner]:
    runner = AdaptedRunner(max_model_len=512)
    return Harness(runner, adapters=sources, max_adapters=max_adapters, **config), runner


def outcomes(engine: Harness) -> list[AdapterOutcome]:
    wait_until(lambda: engine.core.adapters.has_outcomes)
    return engine.core.adapters.take_outcomes()


def test_rows_have_the_adapter_that_their_request_asked_for(depth: int) -> None:
    engine, runner = harness(*SOURCES, pipeline_depth=depth)
    assert engine.core.adapters.names == ["a", "b"]
    engine.add(*(fake_request(name or "base", PROMPT, 4, adapter=name) for name in ("a", "", "b")))
    engine.run()
    assert set.union(*runner.seen) == {"/a", "", "/b"}
    assert set(map(tuple, engine.tokens.values())) == {tuple(expected_tokens(PROMPT, 4))}
    engine.add(fake_request("again", PROMPT, 4))
    runner.seen.clear()
    engine.run()
    assert set.union(*runner.seen) == {""}, "a slot forgets the adapter of the request before"


def test_prefixes_of_adapters_are_kept_apart() -> None:
    engine, _ = harness(*SOURCES)
    for name in ("a", "b", ""):
        engine.add(fake_request(f"first {name}", PROMPT, 4, adapter=name))
        engine.run()
    for name in ("a", "b", ""):
        engine.add(fake_request(f"second {name}", PROMPT, 4, adapter=name))
        engine.run()
    cached = {key: output.num_cached_tokens for key, output in engine.last.items()}
    assert [cached[f"first {name}"] for name in ("a", "b", "")] == [0, 0, 0]
    assert [cached[f"second {name}"] for name in ("a", "b", "")] == [32, 32, 32]


def test_a_request_that_is_preempted_keeps_its_adapter() -> None:
    runner = AdaptedRunner(num_blocks=6, max_model_len=512)
    engine = Harness(runner, adapters=SOURCES, max_adapters=2)
    engine.add(*(fake_request(name, PROMPT[:20], 40, adapter=name) for name in ("a", "b")))
    engine.run()
    assert engine.stats.preemptions_total > 0
    assert set.union(*runner.seen) == {"/a", "/b"}
    assert engine.errors() == {}


def test_an_adapter_that_is_not_there_is_an_error_of_its_request() -> None:
    engine, _ = harness(*SOURCES)
    engine.add(fake_request("x", PROMPT, 4, adapter="c"), fake_request("y", PROMPT, 4, adapter="a"))
    engine.run()
    assert engine.errors() == {"x": "adapter_not_found"}
    assert engine.tokens["y"] == expected_tokens(PROMPT, 4)


def test_requests_go_on_while_an_adapter_is_loaded() -> None:
    engine, runner = harness(SOURCES[0])
    engine.add(fake_request("a", PROMPT, 8, adapter="a"))
    engine.step()
    runner.may_load.clear()
    engine.core.adapters.load("c", "/c")
    engine.run()
    assert engine.tokens["a"] == expected_tokens(PROMPT, 8)
    assert not engine.core.adapters.has_outcomes
    engine.core.adapters.load("c", "/elsewhere")
    assert "loaded already" in (outcomes(engine)[0].error or "")
    runner.may_load.set()
    assert outcomes(engine) == [AdapterOutcome(name="c")]
    engine.add(fake_request("c", PROMPT, 4, adapter="c"))
    engine.run()
    assert "/c" in runner.seen[-1]


def test_what_is_unloaded_stays_until_its_requests_have_ended() -> None:
    engine, runner = harness(*SOURCES)
    engine.add(fake_request("long", PROMPT, 30, adapter="a"))
    engine.step()
    engine.core.adapters.unload("a")
    assert outcomes(engine) == [AdapterOutcome(name="a")]
    engine.add(fake_request("late", PROMPT, 4, adapter="a"))
    engine.core.adapters.load("c", "/c")
    (refused,) = outcomes(engine)
    assert refused.error is not None
    assert "all 2 slots" in refused.error
    engine.run()
    assert engine.tokens["long"] == expected_tokens(PROMPT, 30)
    assert engine.errors() == {"late": "adapter_not_found"}
    assert runner.filled == {0: "/a", 1: "/b"}
    engine.core.adapters.load("c", "/c")
    assert outcomes(engine) == [AdapterOutcome(name="c")]
    assert runner.filled == {0: "/c", 1: "/b"}


def test_an_adapter_loaded_anew_finds_no_prefix_of_the_old_one() -> None:
    engine, _ = harness(SOURCES[0])
    engine.add(fake_request("old", PROMPT, 4, adapter="a"))
    engine.run()
    engine.core.adapters.unload("a")
    assert outcomes(engine) == [AdapterOutcome(name="a")]
    engine.core.adapters.load("a", "/other")
    assert outcomes(engine) == [AdapterOutcome(name="a")]
    engine.add(fake_request("new", PROMPT, 4, adapter="a"))
    engine.run()
    assert engine.last["new"].num_cached_tokens == 0


def test_what_cannot_be_loaded_says_why_and_takes_no_room() -> None:
    engine, runner = harness(SOURCES[0])
    for name, path, why in (("x", "/bad", "/bad: no such adapter"), ("a", "/a", "loaded already"), ("d", "/d", None)):
        engine.core.adapters.load(name, path)
        (outcome,) = outcomes(engine)
        assert outcome.error is None if why is None else why in (outcome.error or "")
    assert runner.filled == {0: "/a", 1: "/d"}
    engine.core.adapters.unload("nobody")
    assert "not loaded" in (outcomes(engine)[0].error or "")


def test_at_the_start_only_those_that_are_not_required_may_fail() -> None:
    with pytest.raises(ValueError, match=r"adapter x: /bad: no such adapter"):
        harness(AdapterSource("x", "/bad"))
    engine, _ = harness(AdapterSource("x", "/bad", required=False), SOURCES[0])
    assert engine.core.adapters.names == ["a"]


def test_without_room_nothing_is_loaded() -> None:
    engine = Harness(FakeRunner())
    engine.core.adapters.load("a", "/a")
    assert "--max-adapters" in (outcomes(engine)[0].error or "")
    engine = Harness(FakeRunner(), max_adapters=1)
    engine.core.adapters.load("a", "/a")
    assert "takes no adapters" in (outcomes(engine)[0].error or "")
