"""Masks that travel with a step's plan, to ranks in other processes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract.step import StepPlan, TokenMasks


class SentMasks:
    """Masks that came with a plan; see :class:`~app.contract.step.TokenMasks`."""

    def __init__(self, plan: StepPlan) -> None:
        num_samples = {row.slot: row.num_samples for row in plan.rows}
        self.slots: Sequence[int] = [slot for slot in plan.token_masks for _ in range(num_samples[slot])]
        self._words = b"".join(plan.token_masks.values())

    @property
    def made_meanwhile(self) -> bool:
        return False

    def wait(self) -> NDArray[np.uint32]:
        return np.frombuffer(self._words, dtype=np.uint32).reshape(len(self.slots), -1)


def sent_masks(plan: StepPlan) -> TokenMasks | None:
    """The masks that came with a plan; None where there are none."""
    return SentMasks(plan) if plan.token_masks else None


def with_masks(plan: StepPlan, masks: TokenMasks) -> StepPlan:
    """The plan with its masks, which are waited for."""
    sent: dict[int, bytes] = {}
    for slot, words in zip(masks.slots, masks.wait(), strict=True):
        sent[slot] = sent.get(slot, b"") + words.tobytes()
    return msgspec.structs.replace(plan, token_masks=sent)
