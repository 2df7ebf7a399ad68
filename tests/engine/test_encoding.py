"""Sequences that are encoded: packed, in order, bounded, dropped when nobody waits, beside sequences that generate."""

from __future__ import annotations

import itertools

import pytest

from app.contract.frames import EncodeOutput, EngineOutput
from app.contract.request import EncodeRequest, FinishReason, Pooling
from app.contract.step import EncodeBatch
from app.engine.core import EngineCore, EngineFailedError
from tests.fake_encoder import encode_request, expected_vector, floats
from tests.fakes import FakeRunner, expected_tokens, fake_config, fake_request


class Engine:
    """An engine whose time is ``self.now`` and which remembers what it has said."""

    def __init__(self, runner: FakeRunner | None = None, **config: object) -> None:
        self.runner = runner or FakeRunner(max_encode_len=100)
        self.now = 0.0
        self.core = EngineCore(self.runner, fake_config(**config), clock=lambda: self.now)
        self.encoded: dict[str, EncodeOutput] = {}
        self.tokens: dict[str, list[int]] = {}
        self.last: dict[str, EngineOutput] = {}

    def encode(self, *requests: EncodeRequest) -> None:
        for request in requests:
            self.core.add_encode_request(request)

    def step(self) -> None:
        self.core.advance()
        self.note()

    def note(self) -> None:
        for outputs in self.core.take_encoded().values():
            for encoded in outputs:
                assert encoded.request_id not in self.encoded, f"{encoded.request_id} was answered twice"
                self.encoded[encoded.request_id] = encoded
        for given in self.core.take_outputs().values():
            for output in given:
                self.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
                if output.finish_reason is not None:
                    self.last[output.request_id] = output

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.core.has_work:
                return
            self.step()
        raise TimeoutError(f"not idle after {max_steps} steps")

    def error(self, request_id: str) -> str:
        output = self.encoded[request_id]
        assert output.error is not None
        assert (output.finish_reason, output.data) == (FinishReason.ERROR, b"")
        return output.error.code

    @property
    def sizes(self) -> list[list[int]]:
        """Lengths of the sequences of each batch."""
        return [sizes_of(batch) for batch in self.runner.batches]


def sizes_of(batch: EncodeBatch) -> list[int]:
    return [end - start for start, end in itertools.pairwise(batch.bounds)]


def tokens_of(index: int, length: int) -> list[int]:
    return [(index * 31 + i) % 1000 for i in range(length)]


def test_whole_sequences_are_packed_by_tokens_in_order(depth: int) -> None:
    engine = Engine(max_num_batched_tokens=100, pipeline_depth=depth)
    lengths = [40, 50, 20, 90, 1, 9, 1, 100, 2]
    engine.encode(*(encode_request(f"r{i}", tokens_of(i, length)) for i, length in enumerate(lengths)))
    assert engine.core.stats().num_waiting == len(lengths)
    engine.run()
    assert engine.sizes == [[40, 50], [20], [90, 1, 9], [1], [100], [2]]
    for i, length in enumerate(lengths):
        output = engine.encoded[f"r{i}"]
        assert floats(output.data) == expected_vector(tokens_of(i, length))
        assert (output.shape, output.dtype, output.finish_reason) == ((2,), "float32", FinishReason.STOP)
        assert output.timings is not None
    stats = engine.core.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert (stats.encode_tokens_total, stats.steps_total) == (sum(lengths), 6)


def test_options_go_with_their_sequence() -> None:
    engine = Engine()
    for pooling in Pooling:
        for normalize in (False, True):
            request_id = f"{pooling}-{normalize}"
            engine.encode(encode_request(request_id, [1, 2, 3], pooling=pooling, normalize=normalize))
    engine.run()
    assert len(engine.sizes) == 1
    for pooling in Pooling:
        for normalize in (False, True):
            data = engine.encoded[f"{pooling}-{normalize}"].data
            assert floats(data) == expected_vector([1, 2, 3], pooling, normalize=normalize)
    assert engine.encoded["none-True"].shape == (3, 1)


def test_priority_goes_before_arrival() -> None:
    engine = Engine(max_num_batched_tokens=100)
    engine.encode(
        encode_request("late", tokens_of(0, 60), arrival_time=2.0),
        encode_request("early", tokens_of(1, 61), arrival_time=1.0),
        encode_request("urgent", tokens_of(2, 62), arrival_time=3.0, priority=-1),
    )
    engine.run()
    assert engine.sizes == [[62], [61], [60]]


def test_a_sequence_may_be_longer_than_a_step() -> None:
    engine = Engine(max_num_batched_tokens=10)
    engine.encode(encode_request("long", tokens_of(0, 100)), encode_request("short", [1]))
    engine.run()
    assert engine.sizes == [[100], [1]]


def test_what_is_aborted_is_not_computed(depth: int) -> None:
    engine = Engine(max_num_batched_tokens=100, pipeline_depth=depth)
    engine.encode(*(encode_request(f"r{i}", tokens_of(i, 60)) for i in range(3)))
    engine.core.abort(["r1", "unknown", "r1"])
    engine.run()
    assert engine.sizes == [[60], [60]]
    assert engine.encoded["r1"].finish_reason is FinishReason.ABORT
    assert floats(engine.encoded["r2"].data) == expected_vector(tokens_of(2, 60))


def test_an_abort_while_the_batch_is_under_way() -> None:
    engine = Engine(pipeline_depth=2)
    engine.encode(encode_request("gone", [1, 2]), encode_request("stays", [3]))
    engine.step()
    assert engine.encoded == {}
    assert (engine.core.stats().num_running, engine.core.stats().num_waiting) == (2, 0)
    engine.core.abort(["gone"])
    engine.note()
    assert engine.encoded["gone"].finish_reason is FinishReason.ABORT
    engine.run()
    assert floats(engine.encoded["stays"].data) == expected_vector([3])


def test_deadlines() -> None:
    engine = Engine(max_num_batched_tokens=100)
    engine.encode(
        encode_request("first", tokens_of(0, 90)),
        encode_request("late", tokens_of(1, 90), deadline=5.0),
        encode_request("patient", tokens_of(2, 90), deadline=50.0),
    )
    engine.step()
    engine.now = 5.0
    engine.run()
    assert engine.error("late") == "deadline_exceeded"
    assert engine.sizes == [[90], [90]]
    assert floats(engine.encoded["patient"].data) == expected_vector(tokens_of(2, 90))


def test_waiting_tokens_are_bounded() -> None:
    engine = Engine(max_queued_encode_tokens=100, max_num_batched_tokens=50)
    engine.encode(*(encode_request(f"r{i}", tokens_of(i, 40)) for i in range(4)))
    engine.step()
    assert [engine.error(f"r{i}") for i in (2, 3)] == ["overloaded"] * 2
    engine.encode(encode_request("again", tokens_of(5, 40)))
    engine.run()
    assert engine.sizes == [[40, 40], [40]]


def test_one_sequence_may_always_wait() -> None:
    engine = Engine(max_queued_encode_tokens=1)
    engine.encode(encode_request("long", tokens_of(0, 100)))
    engine.run()
    assert engine.encoded["long"].error is None


@pytest.mark.parametrize(
    ("token_ids", "code"),
    [
        ([], "invalid_request"),
        ([1000], "invalid_request"),
        ([-1], "invalid_request"),
        ([1] * 101, "context_length_exceeded"),
    ],
)
def test_the_engine_checks_again(token_ids: list[int], code: str) -> None:
    engine = Engine()
    engine.encode(encode_request("bad", token_ids))
    engine.run()
    assert engine.error("bad") == code
    assert engine.sizes == []


def test_fields_that_are_no_numbers() -> None:
    engine = Engine()
    engine.encode(encode_request("deadline", [1], deadline=float("nan")))
    engine.encode(encode_request("arrival", [1], arrival_time=float("inf")))
    engine.run()
    assert engine.error("deadline") == engine.error("arrival") == "invalid_request"


def test_an_id_is_in_use_whatever_it_is_used_for() -> None:
    engine = Engine()
    engine.encode(encode_request("a", [1]))
    engine.core.add_request(fake_request("b", [1, 2]))
    engine.encode(encode_request("b", [1]))
    engine.core.add_request(fake_request("a", [1, 2]))
    engine.note()
    assert engine.error("b") == "invalid_request"
    assert engine.last["a"].error is not None
    engine.encoded.clear()
    engine.run()
    assert floats(engine.encoded["a"].data) == expected_vector([1])
    assert engine.tokens["b"] == expected_tokens([1, 2], 8)


def test_a_batch_that_fails_ends_its_own_requests(depth: int) -> None:
    runner = FakeRunner(max_encode_len=3, fail_encode=lambda batch: 7 in batch.token_ids)
    engine = Engine(runner, max_num_batched_tokens=3, pipeline_depth=depth)
    engine.encode(*(encode_request(f"r{i}", [i, i]) for i in (6, 7, 8)))
    engine.core.add_request(fake_request("text", [1, 2], 20))
    engine.run()
    assert engine.error("r7") == "engine_error"
    assert [floats(engine.encoded[f"r{i}"].data) for i in (6, 8)] == [expected_vector([i, i]) for i in (6, 8)]
    assert engine.tokens["text"] == expected_tokens([1, 2], 20)


def test_batch_after_batch_that_fails_ends_the_engine() -> None:
    engine = Engine(FakeRunner(max_encode_len=100, fail_encode=lambda _: True))
    for i in range(3):
        engine.encode(encode_request(f"r{i}", [i]))
        if i < 2:
            engine.step()
    with pytest.raises(EngineFailedError, match="3 steps failed in a row"):
        engine.step()
    engine.note()
    assert [engine.error(f"r{i}") for i in range(3)] == ["engine_error"] * 3


def test_steps_and_batches_take_turns(depth: int) -> None:
    engine = Engine(max_num_batched_tokens=100, pipeline_depth=depth)
    for i in range(4):
        engine.core.add_request(fake_request(f"g{i}", [i, i + 1], 12))
    engine.encode(*(encode_request(f"e{i}", tokens_of(i, 100)) for i in range(10)))
    engine.run()
    kinds = [isinstance(plan, EncodeBatch) for plan in engine.runner.plans]
    both = kinds[: 2 * 10]
    assert all(a is not b for a, b in itertools.pairwise(both)), "one kind had two turns in a row"
    assert engine.runner.max_in_flight == depth
    assert all(engine.tokens[f"g{i}"] == expected_tokens([i, i + 1], 12) for i in range(4))
    assert all(floats(engine.encoded[f"e{i}"].data) == expected_vector(tokens_of(i, 100)) for i in range(10))


def test_records_tell_batches_from_steps() -> None:
    engine = Engine()
    engine.encode(encode_request("e", [1, 2, 3]))
    engine.core.add_request(fake_request("g", [1, 2], 2))
    engine.run()
    records = engine.core.take_records()
    assert [(record.tokens, record.encode, record.decode) for record in records] == [
        (2, False, False),
        (3, True, False),
        (1, False, True),
    ]


def test_an_encoder_alone_does_not_generate() -> None:
    engine = Engine(FakeRunner(groups=[], max_encode_len=10, max_model_len=0))
    engine.core.add_request(fake_request("text", [1, 2]))
    engine.encode(encode_request("vector", [1, 2]))
    engine.run()
    error = engine.last["text"].error
    assert error is not None
    assert (error.code, error.message) == ("invalid_request", "this model does not generate")
    assert floats(engine.encoded["vector"].data) == expected_vector([1, 2])
    engine.core.check_integrity()


def test_a_decoder_does_not_encode() -> None:
    engine = Engine(FakeRunner())
    engine.encode(encode_request("vector", [1, 2]))
    engine.run()
    assert engine.error("vector") == "invalid_request"


def test_a_model_has_to_do_something() -> None:
    with pytest.raises(ValueError, match="without a KV cache group"):
        EngineCore(FakeRunner(groups=[]), fake_config())
