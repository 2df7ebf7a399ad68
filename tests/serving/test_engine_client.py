"""Frames to and from the engine: routing, what a lost engine leaves behind, counters over several engines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from app.contract.config import EngineConfig
from app.contract.frames import EngineFatal, EngineOutput, EngineStats, LoadProgress, OutputFrame
from app.contract.request import FinishReason
from app.engine.inproc import InprocConnection
from app.errors import RequestError
from app.ipc import AsyncFrameChannel, ChannelClosedError, encode
from app.serving.connection import SocketConnection
from app.serving.engine_client import EngineFailedError, EngineState
from app.serving.mailbox import Mailbox
from tests.fakes import fake_config, fake_ready, fake_request, make_fake_runner
from tests.serving.rig import Rig, make_rig, until

READY = fake_ready(vocab_size=260)


class Engine:
    """The far end of a client's socket, to speak the engine's part by hand."""

    def __init__(self, rig: Rig, channel: AsyncFrameChannel, serving: asyncio.Task[str | None]) -> None:
        self.rig = rig
        self.serving = serving
        self._channel = channel

    @classmethod
    async def connect(cls, rig: Rig) -> Engine:
        """Connects to a client that serves from here on."""
        ours, theirs = socket.socketpair()
        connection = await SocketConnection.open(ours, EngineConfig(model_dir="fake"))
        channel = await AsyncFrameChannel.open(theirs)
        await channel.receive()  # the configuration
        return cls(rig, channel, asyncio.create_task(rig.client.serve(connection)))

    async def say(self, *frames: object) -> None:
        """Sends frames, or raw payloads."""
        for frame in frames:
            await self._channel.send(frame if isinstance(frame, bytes) else encode(frame))

    async def hears_the_end(self) -> None:
        """Reads on until the client has hung up."""
        with contextlib.suppress(ChannelClosedError):
            while True:
                await self._channel.receive()

    async def leave(self) -> str | None:
        """Hangs up and returns what the client says of it."""
        await self._channel.close()
        await asyncio.wait([self.serving])
        return None if self.serving.cancelled() else self.serving.result()


def step(*outputs: EngineOutput, **stats: Any) -> OutputFrame:
    """One step's frame."""
    return OutputFrame(client_index=0, outputs=list(outputs), stats=EngineStats(**stats))


async def test_a_mailbox_hands_out_all_that_waits() -> None:
    mailbox = Mailbox(EngineOutput)
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    for count in (1, 2):
        mailbox.put(EngineOutput(request_id="r", new_token_ids=[7] * count))
    assert mailbox.tokens == 3
    assert [len(arrival.output.new_token_ids) for arrival in await taking] == [1, 2]
    assert mailbox.tokens == 0


async def test_start_up_is_followed() -> None:
    rig = make_rig()
    assert rig.client.readiness() == (False, "the engine is starting")
    engine = await Engine.connect(rig)
    await engine.say(LoadProgress(phase="weights", done=1, total=2))
    await until(lambda: rig.client.progress is not None)
    assert rig.client.readiness() == (False, "the engine is loading (weights)")
    assert rig.sample("tuili_engine_state", state="loading") == 1
    await engine.say(READY)
    assert await rig.client.wait_ready() == READY
    assert rig.client.readiness() == (True, "")
    assert rig.sample("tuili_engine_state", state="ready") == 1
    assert rig.sample("vllm:cache_config_info", block_size="16", num_gpu_blocks="64", cache_dtype="int64") == 1
    assert await engine.leave() is None
    assert rig.client.state is EngineState.LOADING


async def test_last_words_are_kept() -> None:
    rig = make_rig()
    engine = await Engine.connect(rig)
    await engine.say(EngineFatal("no memory for the KV cache"))
    assert await engine.leave() == "no memory for the KV cache"


async def test_a_connection_that_speaks_no_protocol_is_given_up() -> None:
    rig = make_rig()
    engine = await Engine.connect(rig)
    await engine.say(READY)
    await rig.client.wait_ready()
    mailbox = rig.client.submit([fake_request("a", [1])])
    await engine.say(b"\xc1 nonsense")
    reason = await engine.serving
    assert reason is not None
    assert "invalid frame" in reason
    (arrival,) = await mailbox.take()
    assert arrival.output.error is not None
    assert arrival.output.error.code == "engine_restarted"
    await engine.leave()


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_twice_it_still_answers_and_hangs_up(turns: int) -> None:
    rig = make_rig()
    engine = await Engine.connect(rig)
    await engine.say(READY)
    await rig.client.wait_ready()
    mailbox = rig.client.submit([fake_request("a", [1])])
    engine.serving.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    engine.serving.cancel()
    await asyncio.gather(engine.serving, return_exceptions=True)
    (arrival,) = await mailbox.take()
    assert arrival.output.error is not None
    await engine.hears_the_end()
    await engine.leave()


async def test_outputs_go_to_whoever_asked() -> None:
    rig = make_rig()
    engine = await Engine.connect(rig)
    await engine.say(READY)
    await rig.client.wait_ready()
    both = rig.client.submit([fake_request("a", [1]), fake_request("b", [1])])
    other = rig.client.submit([fake_request("c", [1])])
    rig.client.abort(["c", "unknown"])
    assert rig.client.in_flight == 2
    await engine.say(
        step(
            EngineOutput(request_id="a", new_token_ids=[1]),
            EngineOutput(request_id="b", new_token_ids=[2], finish_reason=FinishReason.STOP),
            EngineOutput(request_id="c", new_token_ids=[3]),
        )
    )
    assert [arrival.output.request_id for arrival in await both.take()] == ["a", "b"]
    assert other.tokens == 0
    assert rig.client.in_flight == 1
    await engine.say(step(EngineOutput(request_id="a", finish_reason=FinishReason.LENGTH)))
    await until(lambda: not rig.client.in_flight)
    await engine.leave()


async def test_a_mailbox_that_is_not_read_is_bounded() -> None:
    rig = make_rig(max_backlog=10)
    engine = await Engine.connect(rig)
    await engine.say(READY)
    await rig.client.wait_ready()
    slow = rig.client.submit([fake_request("a", [1]), fake_request("b", [1])])
    quick = rig.client.submit([fake_request("c", [1])])
    for _ in range(20):
        await engine.say(step(*(EngineOutput(request_id=name, new_token_ids=[1]) for name in "abc")))
        await quick.take()
    assert slow.tokens <= 12
    errors = [arrival.output.error for arrival in await slow.take() if arrival.output.error]
    assert [error.code for error in errors] == ["slow_consumer"]
    assert rig.client.in_flight == 1
    await engine.leave()


async def test_counters_go_on_over_engines() -> None:
    rig = make_rig()
    seen = []
    for total in (5, 3, 9):
        engine = await Engine.connect(rig)
        await engine.say(
            READY,
            step(steps_total=1, generation_tokens_total=1, num_running=1, blocks_used=32, blocks_total=64),
            step(steps_total=2, generation_tokens_total=total, num_running=1, blocks_used=32, blocks_total=64),
        )
        await until(lambda total=total: rig.client.stats.generation_tokens_total == total)  # type: ignore[misc]
        assert rig.sample("vllm:kv_cache_usage_perc") == 0.5
        await engine.leave()
        seen.append(rig.sample("tuili_engine_generation_tokens_total"))
        assert rig.sample("vllm:num_requests_running") == 0
    assert seen == [5, 8, 17]
    assert rig.sample("tuili_engine_steps_total") == 6


async def test_an_engine_that_is_gone_for_good() -> None:
    rig = make_rig()
    rig.client.fail("the weights are broken")
    with pytest.raises(EngineFailedError, match="the weights are broken"):
        await rig.client.wait_ready()
    error = rig.client.unavailable()
    assert isinstance(error, RequestError)
    assert (error.status, error.code) == (503, "engine_dead")
    rig.client.drain()
    assert rig.client.state is EngineState.DEAD


async def test_one_client_serves_one_engine_after_another() -> None:
    rig = make_rig()
    for _ in range(2):
        serving = asyncio.create_task(rig.client.serve(InprocConnection(fake_config(), make_fake_runner)))
        await rig.client.wait_ready()
        mailbox = rig.client.submit([fake_request("a", [1, 2, 3], max_tokens=4)])
        token_ids: list[int] = []
        while len(token_ids) < 4:
            token_ids += [token_id for arrival in await mailbox.take() for token_id in arrival.output.new_token_ids]
        rig.client.shut_down()
        assert await serving is None
    assert rig.sample("tuili_engine_generation_tokens_total") == 8
