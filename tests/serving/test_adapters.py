"""Adapters as the API process knows them: over restarts, and while the engine is gone."""

from __future__ import annotations

import asyncio

import pytest

from app.contract.config import AdapterSource, EngineConfig
from app.contract.frames import AdapterOutcome, ClientFrame, LoadAdapter, UnloadAdapter
from app.errors import RequestError
from app.serving.adapters import ServedAdapters

FIRST = AdapterSource("first", "/first")


def adapters() -> tuple[ServedAdapters, list[ClientFrame]]:
    frames = list[ClientFrame]()
    made = ServedAdapters(frames.append)
    made.begin([FIRST])
    return made, frames


async def settled(change: asyncio.Task[None], made: ServedAdapters, name: str, error: str | None = None) -> None:
    await asyncio.sleep(0)
    made.settle(AdapterOutcome(name=name, error=error))
    await change


async def test_an_engine_that_is_started_again_loads_what_was_loaded() -> None:
    made, frames = adapters()
    await settled(asyncio.create_task(made.load("second", "/second")), made, "second")
    assert frames == [LoadAdapter("second", "/second")]
    config = made.config(EngineConfig(model_dir="m"))
    assert config.adapters == (FIRST, AdapterSource("second", "/second", required=False))
    made.note_ready(["first"])
    assert list(made.names) == ["first"], "what it could not load is gone"
    await settled(asyncio.create_task(made.unload("first")), made, "first")
    assert frames[1:] == [UnloadAdapter("first")]
    assert made.config(config).adapters == ()


async def test_a_refusal_leaves_everything_as_it_was() -> None:
    made, _ = adapters()
    with pytest.raises(RequestError, match="no such file") as error:
        await settled(asyncio.create_task(made.load("x", "/x")), made, "x", "no such file")
    assert (error.value.status, error.value.code) == (400, "adapter_refused")
    assert list(made.names) == ["first"]


async def test_one_change_of_a_name_at_a_time() -> None:
    made, _ = adapters()
    loading = asyncio.create_task(made.load("x", "/x"))
    await asyncio.sleep(0)
    with pytest.raises(RequestError) as error:
        await made.load("x", "/other")
    assert (error.value.status, error.value.code) == (409, "adapter_busy")
    await settled(loading, made, "x")


async def test_an_engine_that_is_gone_answers_nobody() -> None:
    made, _ = adapters()
    changes = [asyncio.create_task(made.load("x", "/x")), asyncio.create_task(made.unload("first"))]
    await asyncio.sleep(0)
    made.lose()
    for error in await asyncio.gather(*changes, return_exceptions=True):
        assert isinstance(error, RequestError)
        assert error.status == 503
    assert list(made.names) == ["first"], "the next engine loads it"
