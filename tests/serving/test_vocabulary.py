"""The vocabulary goes to each engine once, before its first constrained request, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import threading

import msgspec

from app.contract.frames import ClientFrame, EngineError, Vocabulary
from app.contract.request import FinishReason, GenerateRequest
from app.serving.vocabulary import VocabularyGate
from tests.byte_tokenizer import EOS_ID, IM_END
from tests.fakes import fake_request
from tests.serving.rig import make_rig, running, until

VOCABULARY = Vocabulary(token_bytes=[b"a"], control_tokens={}, definition="{}")
GRAMMAR = 'start: "yes" | "no"'


def constrained(request_id: str) -> GenerateRequest:
    return msgspec.structs.replace(fake_request(request_id, [1]), constraint=GRAMMAR)


class Gate:
    """A gate, and what came out of it."""

    def __init__(self) -> None:
        self.sent: list[ClientFrame] = []
        self.failed: dict[str, EngineError] = {}
        self.wanted = {"a", "b", "c"}
        self.go = threading.Event()
        self.gate = VocabularyGate(self.sent.append, self.failed.__setitem__, self.wanted.__contains__)
        self.gate.source = self.read

    def read(self) -> Vocabulary:
        self.go.wait(20)
        return VOCABULARY


async def test_constrained_requests_wait_for_it_and_others_do_not() -> None:
    it = Gate()
    assert it.gate.holds(constrained("a"))
    assert not it.gate.holds(fake_request("free", [1]))
    assert it.gate.holds(constrained("b"))
    it.go.set()
    await until(lambda: len(it.sent) == 3)
    assert it.sent == [VOCABULARY, constrained("a"), constrained("b")]
    assert not it.gate.holds(constrained("c"))


async def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    it = Gate()
    assert it.gate.holds(constrained("a"))
    assert it.gate.holds(constrained("b"))
    it.wanted.remove("a")
    it.go.set()
    await until(lambda: len(it.sent) == 2)
    assert it.sent == [VOCABULARY, constrained("b")]


async def test_another_engine_is_told_anew() -> None:
    it = Gate()
    it.go.set()
    for request_id in "ab":
        it.gate.reset()
        assert it.gate.holds(constrained(request_id))
        await until(lambda request_id=request_id: constrained(request_id) in it.sent)  # type: ignore[misc]
    assert it.sent == [VOCABULARY, constrained("a"), VOCABULARY, constrained("b")]


async def test_an_engine_that_is_gone_gets_nothing() -> None:
    it = Gate()
    assert it.gate.holds(constrained("a"))
    await asyncio.sleep(0)
    it.gate.reset()
    it.go.set()
    assert it.gate.holds(constrained("b"))
    await until(lambda: len(it.sent) == 2)
    assert it.sent == [VOCABULARY, constrained("b")]


async def test_a_tokenizer_that_cannot_be_read_is_those_requests_error() -> None:
    it = Gate()

    def gone() -> Vocabulary:
        raise FileNotFoundError("tokenizer.json")

    it.gate.source = gone
    assert it.gate.holds(constrained("a"))
    await until(lambda: bool(it.failed))
    assert it.failed["a"].code == "engine_error"
    it.gate.source = it.read
    it.go.set()
    assert it.gate.holds(constrained("b"))
    await until(lambda: len(it.sent) == 2)


def test_the_tokenizers_own_vocabulary() -> None:
    tokenizer = make_rig().generator.tokenizer
    vocabulary = tokenizer.vocabulary()
    assert vocabulary.token_bytes[ord("a")] == b"a"
    assert vocabulary.control_tokens[tokenizer.control_token_id(IM_END) or 0] == IM_END
    assert vocabulary.definition.startswith("{")


async def test_a_constrained_request_is_answered() -> None:
    async with running() as rig:
        generation = await rig.submit("Yes or no?", max_tokens=8, constraint=GRAMMAR)
        (completion,) = await generation.collect()
        assert completion.text in ("yes", "no")
        assert completion.finish_reason is FinishReason.STOP
        assert EOS_ID not in completion.token_ids
        assert rig.sample("tuili_forced_tokens_total") > 0
