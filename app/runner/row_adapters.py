"""Which adapter the tokens of a step have."""

from __future__ import annotations

import numpy as np

from app.contract.step import StepPlan
from app.runner.staging import StagedBuffer


class RowAdapters:
    """The adapters of all slots of the runner, and those of a step's tokens.

    Args:
        of_tokens: [max_tokens] int32, what kernels read.
        order: [max_tokens] int32, likewise: the step's tokens sorted by adapter, those without one first.
        num_slots: slots of the runner.
    """

    def __init__(self, of_tokens: StagedBuffer, order: StagedBuffer, num_slots: int) -> None:
        self.of_tokens, self.order = of_tokens, order
        of_tokens.array[:] = -1
        self._of_slots = np.full(num_slots, -1, dtype=np.int32)

    def fill(self, step: StepPlan, num_tokens: int) -> None:
        """Notes what the step's slots are bound to, and fills in its tokens.

        Args:
            num_tokens: tokens of the step, those that pad it too.
        """
        for init in step.slots:
            self._of_slots[init.slot] = init.adapter
        of_rows = self._of_slots[[row.slot for row in step.rows]]
        if not step.is_decode:
            of_rows = np.repeat(of_rows, [row.num_tokens for row in step.rows])
        self.of_tokens.array[: step.num_tokens] = of_rows
        self.of_tokens.array[step.num_tokens : num_tokens] = -1
        self.order.array[:num_tokens] = np.argsort(self.of_tokens.array[:num_tokens], kind="stable")
