"""The same engine in a thread, behind the interface of a connection."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from app.contract.config import EngineConfig
from app.contract.frames import (
    AbortRequests,
    EngineFatal,
    EngineOutput,
    EngineReady,
    LoadProgress,
    OutputFrame,
    Shutdown,
)
from app.contract.request import FinishReason
from app.engine import inproc
from app.engine.inproc import InprocConnection
from tests.engine.harness import wait_until
from tests.fake_tiers import CopyingRunner
from tests.fakes import FakeRunner, expected_tokens, fake_config, fake_request, make_fake_runner


async def ready(connection: InprocConnection) -> None:
    assert isinstance(await connection.receive(), LoadProgress)
    assert isinstance(await connection.receive(), EngineReady)


async def outputs_until(connection: InprocConnection, *request_ids: str) -> dict[str, list[EngineOutput]]:
    outputs: dict[str, list[EngineOutput]] = {}
    pending = set(request_ids)
    async with asyncio.timeout(20):
        while pending:
            frame = await connection.receive()
            assert isinstance(frame, OutputFrame)
            for output in frame.outputs:
                outputs.setdefault(output.request_id, []).append(output)
                if output.finish_reason is not None:
                    pending.discard(output.request_id)
    return outputs


async def read_to_the_end(connection: InprocConnection) -> None:
    while True:
        await connection.receive()


async def test_an_engine_without_work_keeps_what_was_said_and_the_next_one_has_it(tmp_path: Path) -> None:
    def make(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> CopyingRunner:
        progress(LoadProgress(phase="weights", done=1, total=1))
        return CopyingRunner()

    cached = []
    for _ in range(2):
        connection = InprocConnection(fake_config(prefix_cache_dir=str(tmp_path)), make)
        await ready(connection)
        await connection.send(fake_request("a", list(range(100)), 4))
        outputs = await outputs_until(connection, "a")
        cached.append(outputs["a"][-1].num_cached_tokens)
        await asyncio.to_thread(wait_until, lambda: len(list(tmp_path.glob("??/*.kv"))) == 6)
        await connection.close()
    assert cached == [0, 96]


async def test_requests_are_served(depth: int) -> None:
    connection = InprocConnection(fake_config(pipeline_depth=depth), make_fake_runner)
    await ready(connection)
    for key in "ab":
        await connection.send(fake_request(key, [1, 2, ord(key)], 12))
    outputs = await outputs_until(connection, "a", "b")
    for key in "ab":
        tokens = [token for output in outputs[key] for token in output.new_token_ids]
        assert tokens == expected_tokens([1, 2, ord(key)], 12)
    await connection.close()


async def test_after_close_both_ways_are_closed_and_no_thread_is_left() -> None:
    connection = InprocConnection(fake_config(), make_fake_runner)
    await ready(connection)
    await connection.send(fake_request("a", [1], 400))
    await connection.close()
    with pytest.raises(ConnectionError):
        await read_to_the_end(connection)
    with pytest.raises(ConnectionError):
        await connection.send(fake_request("b", [1], 1))
    assert "engine" not in [thread.name for thread in threading.enumerate()]
    await connection.close()


async def test_a_reader_that_waits_is_told_of_the_end() -> None:
    connection = InprocConnection(fake_config(), make_fake_runner)
    await ready(connection)
    reading = asyncio.create_task(connection.receive())
    await asyncio.sleep(0.01)
    await connection.send(Shutdown())
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(reading, 20)
    await connection.close()


async def test_an_abort_reaches_a_busy_engine() -> None:
    def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        progress(LoadProgress(phase="weights"))
        return FakeRunner(delay=0.001)

    connection = InprocConnection(fake_config(), make_runner)
    await ready(connection)
    await connection.send(fake_request("a", [1], 400))
    await connection.receive()
    await connection.send(AbortRequests(["a"]))
    outputs = await outputs_until(connection, "a")
    assert outputs["a"][-1].finish_reason is FinishReason.ABORT
    await connection.close()


async def test_a_load_that_fails_is_fatal() -> None:
    def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        raise ValueError("config.json: no such field")

    connection = InprocConnection(fake_config(), make_runner)
    assert await connection.receive() == EngineFatal("config.json: no such field")
    with pytest.raises(ConnectionError):
        await connection.receive()
    await connection.close()


async def test_a_load_ends_early_when_the_connection_is_closed() -> None:
    started = threading.Event()

    def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        while True:
            progress(LoadProgress(phase="weights"))
            started.set()

    connection = InprocConnection(fake_config(), make_runner)
    await asyncio.to_thread(started.wait, 20)
    await asyncio.wait_for(connection.close(), 20)


async def test_a_reader_that_stops_reading_stops_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inproc, "OUTBOX_FRAMES", 10)
    runner = FakeRunner()
    connection = InprocConnection(fake_config(), lambda *_: runner)
    assert isinstance(await connection.receive(), EngineReady)
    await connection.send(fake_request("a", [1], 400))
    await asyncio.to_thread(wait_until, lambda: len(runner.steps) == 11)
    await asyncio.sleep(0.05)
    assert len(runner.steps) == 11
    outputs = await outputs_until(connection, "a")
    assert sum(len(output.new_token_ids) for output in outputs["a"]) == 400
    await connection.close()


@pytest.mark.timeout(20)
def test_a_reader_that_was_quicker_than_the_engine_is_not_waited_for() -> None:
    """It may have read on between the engine's look at the outbox and its wait."""
    port = inproc._ThreadPort()
    assert port.poll(wait=True, for_room=True) == []


async def test_a_field_of_the_wrong_type_is_refused_as_on_a_socket() -> None:
    connection = InprocConnection(fake_config(), make_fake_runner)
    await ready(connection)
    with pytest.raises(msgspec.ValidationError):
        await connection.send(fake_request("a", ["x"]))  # type: ignore[list-item]
    await connection.close()
