"""Activations between kernels: floating ones, and int8 ones with their scales."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import Tensor

ACT_GROUP = 64
"""Neighbouring elements of an int8 activation that share a scale. One scale a token would be set by the few channels
whose values are ten times the others': measured on SmolLM2-135M, that costs 3.7 % of perplexity, groups cost 0.2 %."""


def num_groups(width: int) -> int:
    """Scales of an int8 activation of ``width`` elements; the last group may be shorter."""
    return -(-width // ACT_GROUP)


class ActFormat(enum.Enum):
    """The format in which a linear layer wants its input."""

    FLOAT = "float"
    INT8 = "int8"
    """Symmetric int8 with an fp32 scale for every 64 neighbours of a token (``ACT_GROUP``)."""
    INT8_TOKEN = "int8 token"  # noqa: S105
    """Symmetric int8 with one fp32 scale a token: on a GPU, where tensor cores outrun the scaling of groups."""


def num_scales(width: int, fmt: ActFormat) -> int:
    """Scales of a token's activation of ``width`` elements in one of the int8 formats."""
    return 1 if fmt is ActFormat.INT8_TOKEN else num_groups(width)


@dataclass(frozen=True, slots=True)
class Act:
    """An activation [T, K]: floating ``values`` and no scale, or int8 ``values`` and ``scale`` fp32, [T, K / 64] or
    [T, 1]."""

    values: Tensor
    scale: Tensor | None = None
