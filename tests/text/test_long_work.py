"""Work on long texts: bounded together, in turn, and only while somebody waits for it."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import pytest

from app.errors import RequestError
from app.text.long_work import CAPACITY, LongWork
from tests.serving.rig import WAIT_SECONDS, until


class Gate:
    """Work that ends when it is let go; knows how much of it goes on at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.names: list[str] = []

    def pass_through(self, name: str) -> str:
        self.names.append(name)
        assert self.open.wait(WAIT_SECONDS)
        return name


async def test_what_is_too_much_at_once_waits_in_turn() -> None:
    work, gate = LongWork(), Gate()
    sizes = {"a": CAPACITY // 2, "b": CAPACITY // 2, "large": 9 * CAPACITY, "small": 1}
    runs = [work.run(size, functools.partial(gate.pass_through, name)) for name, size in sizes.items()]
    tasks = [asyncio.create_task(run) for run in runs]
    await until(lambda: len(gate.names) == 2)
    await asyncio.sleep(0.01)
    assert sorted(gate.names) == ["a", "b"]
    gate.open.set()
    assert await asyncio.gather(*tasks) == list(sizes)
    assert gate.names[2:] == ["large", "small"]


async def test_a_deadline_drops_what_waits_and_lets_those_behind_it_go_on() -> None:
    work, gate = LongWork(), Gate()
    first = asyncio.create_task(work.run(CAPACITY - 1, lambda: gate.pass_through("first")))
    await until(lambda: bool(gate.names))
    second = asyncio.create_task(work.run(2, lambda: gate.pass_through("second"), time.monotonic() + 0.05))
    third = asyncio.create_task(work.run(1, lambda: gate.pass_through("third")))
    with pytest.raises(RequestError) as raised:
        await second
    assert (raised.value.status, raised.value.code) == (504, "deadline_exceeded")
    await until(lambda: len(gate.names) == 2)
    gate.open.set()
    assert (await first, await third) == ("first", "third")
    assert gate.names == ["first", "third"]


async def test_work_that_nobody_waits_for_still_counts_until_it_ends() -> None:
    work, gate = LongWork(), Gate()
    with pytest.raises(RequestError):
        await work.run(CAPACITY, lambda: gate.pass_through("late"), time.monotonic() + 0.05)
    next_one = asyncio.create_task(work.run(CAPACITY, lambda: gate.pass_through("next")))
    await asyncio.sleep(0.05)
    assert gate.names == ["late"]
    gate.open.set()
    assert await next_one == "next"


async def test_failures_and_cancelled_waits_give_their_share_back() -> None:
    work, gate = LongWork(), Gate()

    def fail() -> None:
        raise ValueError("bad text")

    with pytest.raises(ValueError, match="bad text"):
        await work.run(CAPACITY, fail)
    first = asyncio.create_task(work.run(CAPACITY, lambda: gate.pass_through("first")))
    await until(lambda: bool(gate.names))
    waiting = asyncio.create_task(work.run(CAPACITY, lambda: gate.pass_through("waiting")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gate.open.set()
    assert await first == "first"
    assert await work.run(CAPACITY, lambda: gate.pass_through("last")) == "last"
    assert gate.names == ["first", "last"]
