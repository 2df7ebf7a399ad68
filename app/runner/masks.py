"""Masks that travel with a step's plan, to ranks in other processes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract.step import StepPlan, TokenMasks


class SentMasks:
    """Masks that came with a plan; see :class:`~app.contract.step.TokenMasks`."""

    def __init__(self, masks: dict[int, bytes]) -> None:
        self._masks = masks

    @property
    def slots(self) -> Sequence[int]:
        return list(self._masks)

    @property
    def made_meanwhile(self) -> bool:
        return False

    def wait(self) -> NDArray[np.uint32]:
        return np.stack([np.frombuffer(words, dtype=np.uint32) for words in self._masks.values()])


def sent_masks(plan: StepPlan) -> TokenMasks | None:
    """The masks that came with a plan; None where there are none."""
    return SentMasks(plan.token_masks) if plan.token_masks else None


def with_masks(plan: StepPlan, masks: TokenMasks) -> StepPlan:
    """The plan with its masks, which are waited for."""
    rows = [words.tobytes() for words in masks.wait()]
    return msgspec.structs.replace(plan, token_masks=dict(zip(masks.slots, rows, strict=True)))
