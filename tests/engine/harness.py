"""Drives an :class:`EngineCore` over a :class:`FakeRunner`, checking the allocator's books after every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from app.contract.frames import EngineOutput, EngineStats
from app.contract.request import FinishReason, GenerateRequest
from app.engine.core import EngineCore
from tests.fakes import FakeRunner, fake_config


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """For what another thread or process is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s")
        time.sleep(0.002)


class Harness:
    """An engine whose time is ``self.now`` and which remembers what it has said."""

    def __init__(self, runner: FakeRunner | None = None, **config: Any) -> None:
        self.runner = runner or FakeRunner()
        self.now = 0.0
        self.core = EngineCore(self.runner, fake_config(**config), clock=lambda: self.now)
        self.tokens: dict[str, list[int]] = {}
        self.first: dict[str, EngineOutput] = {}
        self.last: dict[str, EngineOutput] = {}
        self.order: list[str] = []
        """Request ids as they finished."""

    def add(self, *requests: GenerateRequest) -> None:
        for request in requests:
            self.core.add_request(request)

    def step(self) -> list[EngineOutput]:
        """One step; books and outputs are checked."""
        outputs = self.core.step()
        self.core.check_integrity()
        for output in outputs:
            assert output.request_id not in self.last, f"{output.request_id} was answered after its last output"
            self.first.setdefault(output.request_id, output)
            self.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
            if output.finish_reason is not None:
                self.last[output.request_id] = output
                self.order.append(output.request_id)
        return outputs

    def run(self, max_steps: int = 5000) -> None:
        """Steps until nothing is left; all blocks are back then."""
        for _ in range(max_steps):
            if not self.core.has_work:
                self.check_baseline()
                return
            self.step()
        raise TimeoutError(f"not idle after {max_steps} steps")

    def check_baseline(self) -> None:
        stats = self.core.stats()
        assert (stats.num_running, stats.num_waiting, stats.blocks_used) == (0, 0, 0)
        self.core.check_integrity()

    @property
    def stats(self) -> EngineStats:
        return self.core.stats()

    def errors(self) -> dict[str, str]:
        """Error codes by request."""
        return {key: output.error.code for key, output in self.last.items() if output.error is not None}

    def reasons(self, request_ids: Iterable[str]) -> list[FinishReason | None]:
        return [self.last[request_id].finish_reason for request_id in request_ids]
