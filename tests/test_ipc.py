"""Frames over a socketpair, and the progress stamp."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.config import EngineConfig
from app.contract.frames import (
    AbortRequests,
    EngineError,
    EngineFatal,
    EngineOutput,
    EngineStats,
    LoadProgress,
    OutputFrame,
    RequestTimings,
    Shutdown,
    TokenLogprobs,
)
from app.contract.request import FinishReason
from app.ipc import (
    AsyncFrameChannel,
    ChannelClosedError,
    FrameAssembler,
    FrameChannel,
    FrameError,
    FrameTooLargeError,
    ProgressStamp,
    decode_client_frame,
    decode_engine_config,
    decode_engine_frame,
    encode,
    frame_bytes,
)
from tests.fakes import fake_ready, fake_request

MEGABYTE = 1 << 20


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socketpair with buffers much smaller than the frames."""
    left, right = socket.socketpair()
    for end in (left, right):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with left, right:
        yield left, right


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_frames_survive_any_cutting_of_the_stream(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame_bytes(payload) for payload in payloads)
    assembler = FrameAssembler()
    received: list[bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        received += assembler.feed(stream[:cut])
        stream = stream[cut:]
    assert received == payloads
    assert not assembler.in_frame


def test_frames_survive_single_bytes() -> None:
    assembler = FrameAssembler()
    stream = frame_bytes(b"hello") + frame_bytes(b"") + frame_bytes(b"x" * 1000)
    received = [payload for i in range(len(stream)) for payload in assembler.feed(stream[i : i + 1])]
    assert received == [b"hello", b"", b"x" * 1000]


def test_a_length_above_the_cap_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(FrameError, match="4294967295"):
        FrameAssembler().feed(struct.pack(">I", 0xFFFFFFFF))


def test_a_frame_too_large_to_send_is_refused_and_the_channel_lives(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = FrameChannel(pair[0], max_frame_bytes=10), FrameChannel(pair[1])
    with pytest.raises(FrameTooLargeError):
        near.send(b"x" * 11)
    assert near.pending_bytes == 0
    near.send(b"x" * 10)
    assert far.receive() == [b"x" * 10]


def test_receive_without_data_is_empty(pair: tuple[socket.socket, socket.socket]) -> None:
    assert FrameChannel(pair[0]).receive() == []


def test_a_peer_that_leaves_is_seen_after_its_last_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    channel = FrameChannel(pair[0])
    pair[1].sendall(frame_bytes(b"last"))
    pair[1].close()
    assert channel.receive() == [b"last"]
    with pytest.raises(ChannelClosedError):
        channel.receive()
    with pytest.raises(ChannelClosedError):
        channel.send(b"x")


def test_an_end_in_mid_frame_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    channel = FrameChannel(pair[0])
    pair[1].sendall(frame_bytes(b"cut off")[:-1])
    pair[1].close()
    with pytest.raises(FrameError, match="middle"):
        channel.receive()


def test_what_the_socket_does_not_take_is_kept_and_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    channel, far = FrameChannel(pair[0]), FrameChannel(pair[1])
    payload = os.urandom(MEGABYTE)
    channel.send(payload)
    assert 0 < channel.pending_bytes < MEGABYTE
    received: list[bytes] = []
    while not received:
        received = far.receive()
        channel.flush()
    assert received == [payload]
    assert channel.pending_bytes == 0


async def test_a_megabyte_both_ways_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """Neither end reads only after it has written: with small buffers that would be a deadlock."""
    rounds = 4
    downward = [os.urandom(MEGABYTE) for _ in range(rounds)]
    upward = [os.urandom(MEGABYTE) for _ in range(rounds)]
    at_engine: list[bytes] = []

    def engine() -> None:
        channel = FrameChannel(pair[0])
        for payload in upward:
            channel.send(payload)
        while len(at_engine) < rounds or channel.pending_bytes:
            select.select([channel], [channel] if channel.pending_bytes else [], [], 10)
            channel.flush()
            at_engine.extend(channel.receive())

    thread = threading.Thread(target=engine, daemon=True)
    thread.start()
    client = await AsyncFrameChannel.open(pair[1])

    async def send_all() -> None:
        for payload in downward:
            await client.send(payload)

    async with asyncio.timeout(30):
        sending = asyncio.create_task(send_all())
        at_client = [await client.receive() for _ in range(rounds)]
        await sending
        await asyncio.to_thread(thread.join)
    assert at_client == upward
    assert at_engine == downward
    await client.close()


async def test_the_async_end_waits_while_the_peer_does_not_read(pair: tuple[socket.socket, socket.socket]) -> None:
    client = await AsyncFrameChannel.open(pair[1])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.send(os.urandom(MEGABYTE))
    engine = FrameChannel(pair[0])
    received: list[bytes] = []
    while not received:
        received = engine.receive()
        await asyncio.sleep(0)
    assert len(received[0]) == MEGABYTE, "a cancelled send leaves no half frame"
    await client.close()


async def test_a_cancelled_receive_loses_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    client = await AsyncFrameChannel.open(pair[1])
    frame = frame_bytes(b"in two parts")
    pair[0].sendall(frame[:7])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await client.receive()
    pair[0].sendall(frame[7:])
    assert await client.receive() == b"in two parts"
    await client.close()


async def test_the_async_end_sees_the_end_and_broken_streams(pair: tuple[socket.socket, socket.socket]) -> None:
    client = await AsyncFrameChannel.open(pair[1])
    pair[0].sendall(frame_bytes(b"last") + b"\0\0")
    pair[0].close()
    assert await client.receive() == b"last"
    with pytest.raises(FrameError):
        await client.receive()
    await client.close()


async def test_the_async_end_refuses_impossible_lengths(pair: tuple[socket.socket, socket.socket]) -> None:
    client = await AsyncFrameChannel.open(pair[1], max_frame_bytes=100)
    with pytest.raises(FrameTooLargeError):
        await client.send(b"x" * 101)
    pair[0].sendall(struct.pack(">I", 101))
    with pytest.raises(FrameError):
        await client.receive()
    await client.close()


def test_every_frame_comes_back_as_it_was() -> None:
    request = fake_request("r", [1, 2], stop=("a",), logit_bias={5: -1.0}, stop_token_ids=(3,), logprobs=2)
    for frame in (request, AbortRequests(["a", "b"]), Shutdown()):
        assert decode_client_frame(encode(frame)) == frame
    output = EngineOutput(
        request_id="r",
        new_token_ids=[7],
        logprobs=[TokenLogprobs(7, -0.5, 1, [(7, -0.5), (8, -2.0)])],
        finish_reason=FinishReason.ERROR,
        error=EngineError("engine_error", "why"),
        timings=RequestTimings(1.0, 2.0, 3.0, None),
    )
    ready = fake_ready(quantization="int8", kernels="avx2", tasks=("generate", "embed"))
    step = OutputFrame(client_index=1, outputs=[output], stats=EngineStats(num_running=3))
    for engine_frame in (step, ready, LoadProgress(phase="weights", done=1, total=2), EngineFatal("why")):
        assert decode_engine_frame(encode(engine_frame)) == engine_frame
    config = EngineConfig(model_dir="m", weights=("w",), eos_token_ids=(2,))
    assert decode_engine_config(encode(config)) == config


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", encode({"type": "add"}), encode({"type": "nonsense"})])
def test_what_is_no_frame_does_not_decode(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_client_frame(payload)


def test_a_stamp_says_what_was_written_last() -> None:
    stamp = ProgressStamp.create()
    assert stamp.read() == (0, 0.0, False)
    before = time.monotonic()
    stamp.write(7, has_work=True)
    reading = stamp.read()
    assert (reading.steps, reading.has_work) == (7, True)
    assert before <= reading.time <= time.monotonic()
    stamp.close()


def test_a_stamp_is_shared_with_a_child_process() -> None:
    stamp = ProgressStamp.create()
    code = f"from app.ipc import ProgressStamp; ProgressStamp({stamp.fd}).write(42, has_work=True)"
    subprocess.run([sys.executable, "-c", code], pass_fds=[stamp.fd], check=True)
    assert stamp.read()[::2] == (42, True)
    assert stamp.read().time <= time.monotonic()
    stamp.close()
