"""``trace_step``: a line a row of every step's plan, and none without it."""

from __future__ import annotations

import logging

import pytest

from app.contract.config import EngineConfig
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from tests.fakes import FakeRunner


def lines(caplog: pytest.LogCaptureFixture, *, trace_step: bool) -> list[str]:
    caplog.set_level(logging.INFO, "app.engine.trace")
    core = EngineCore(FakeRunner(), EngineConfig(model_dir="m", max_num_batched_tokens=20, trace_step=trace_step))
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    prompt = list(range(100, 130))
    core.add_request(GenerateRequest(request_id="r", prompt_token_ids=prompt, sampling=sampling, seed=0))
    while core.has_work:
        core.step()
        core.take_outputs()
    return [record.getMessage() for record in caplog.records if record.name == "app.engine.trace"]


def test_a_line_for_each_row(caplog: pytest.LogCaptureFixture) -> None:
    traced = lines(caplog, trace_step=True)
    rows = [line for line in traced if "slot" in line]
    assert len(rows) == 3, "a prompt in two chunks, and the token behind it"
    assert "slot 0 (new) start 0 tokens 20 from host samples 0 blocks 0 1" in rows[0]
    assert "slot 0 start 20 tokens 10 from host samples 1" in rows[1]
    assert "slot 0 start 30 tokens 1 from host samples 1 blocks -" in rows[2]
    assert not any("110" in line for line in traced), "no token of the prompt"


def test_nothing_without_it(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, trace_step=False) == []
