"""A runner without a model that takes adapters."""

from __future__ import annotations

import threading
from typing import Any

from app.contract.step import Plan, StepPlan, TokenMasks
from tests.fakes import FakeRunner


class AdaptedRunner(FakeRunner):
    """Notes what is in each slot for adapters, and which of them its rows have. Paths that begin with ``bad`` cannot be
    loaded; the others wait for :attr:`may_load`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filled: dict[int, str] = {}
        self.may_load = threading.Event()
        self.may_load.set()
        self.bound: dict[int, int] = {}
        """Slot of a sequence -> its adapter's slot."""
        self.seen: list[set[str]] = []
        """Paths of the adapters of each step's rows; empty text for none."""

    def load_adapter(self, slot: int, path: str) -> None:
        assert self.may_load.wait(20)
        if path.rpartition("/")[2].startswith("bad"):
            raise ValueError(f"{path}: no such adapter")
        self.filled[slot] = path

    def submit(self, step: Plan, masks: TokenMasks | None = None) -> Any:
        if isinstance(step, StepPlan):
            self.bound |= {init.slot: init.adapter for init in step.slots}
            adapters = [self.bound[row.slot] for row in step.rows]
            self.seen.append({"" if adapter < 0 else self.filled[adapter] for adapter in adapters})
        return super().submit(step, masks)
