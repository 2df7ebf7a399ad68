"""Asking the engine who holds its blocks: one question at a time, and nobody waits for an engine that is gone."""

from __future__ import annotations

import asyncio

import pytest

from app.contract.frames import ClientFrame, Holding, Holdings, Survey
from app.serving import surveys
from app.serving.surveys import Surveys

HOLDINGS = Holdings(total=64, held=3, cached=2, sequences=[Holding("a", 3, 0)])


async def test_many_askers_are_one_question() -> None:
    sent: list[ClientFrame] = []
    asked = Surveys(sent.append)
    asking = [asyncio.create_task(asked.ask()) for _ in range(3)]
    await asyncio.sleep(0)
    assert sent == [Survey()]
    asked.take(HOLDINGS)
    assert await asyncio.gather(*asking) == [HOLDINGS] * 3
    again = asyncio.create_task(asked.ask())
    await asyncio.sleep(0)
    assert sent == [Survey(), Survey()]
    asked.take(HOLDINGS)
    await again


async def test_a_busy_engine_is_shown_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "PATIENCE", 0.001)
    sent: list[ClientFrame] = []
    asked = Surveys(sent.append)
    assert await asked.ask() is None
    asked.take(HOLDINGS)
    assert await asked.ask() == HOLDINGS
    assert await asked.ask() == HOLDINGS
    assert len(sent) == 2, "the second question is still open"


async def test_nobody_waits_for_an_engine_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "PATIENCE", 3600.0)
    asked = Surveys(lambda _frame: None)
    asking = asyncio.create_task(asked.ask())
    await asyncio.sleep(0)
    asked.reset()
    assert await asking is None
