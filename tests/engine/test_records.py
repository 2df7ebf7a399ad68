"""What the engine says of each step: what it did, and where its time went."""

from __future__ import annotations

from typing import Any

from app.contract.step import Plan, StepResult, TokenMasks
from tests.engine.harness import Harness
from tests.fakes import FakeRunner, fake_request


class TimedRunner(FakeRunner):
    """Each step's kernels take two seconds of the harness's clock; getting it there takes one."""

    harness: Harness

    def submit(self, step: Plan, masks: TokenMasks | None = None) -> Any:
        self.harness.now += 3.0
        return super().submit(step, masks)

    def collect(self, handle: Any) -> StepResult:
        result = super().collect(handle)
        assert isinstance(result, StepResult)
        return StepResult(rows=result.rows, replayed=True, kernel_seconds=2.0)


def test_a_record_for_each_step() -> None:
    runner = TimedRunner()
    engine = runner.harness = Harness(runner)
    engine.add(fake_request("a", [1, 2, 3], 3))
    for _ in range(3):
        engine.step()
        engine.now += 0.5  # until the loop comes back: the next step's cost
    records = engine.core.take_records()
    assert [(record.tokens, record.decode, record.replayed) for record in records] == [
        (3, False, True),
        (1, True, True),
        (1, True, True),
    ]
    assert [record.seconds for record in records] == [3.0, 3.5, 3.5]
    assert [record.kernel_seconds for record in records] == [2.0] * 3
    assert engine.core.take_records() == []


def test_no_step_pays_for_an_idle_engine() -> None:
    runner = TimedRunner()
    engine = runner.harness = Harness(runner)
    for name in ("a", "b"):
        engine.add(fake_request(name, [1, 2, 3], 1))
        engine.run()
        engine.now += 1000.0
    assert [record.seconds for record in engine.core.take_records()] == [3.0, 3.0]
