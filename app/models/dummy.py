"""Random weights in place of a checkpoint's, to measure and to test shapes for which there is none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_STD = 0.02


def fill_dummy_weights(destinations: Mapping[str, Tensor], seed: int) -> None:
    """Fills norm weights with ones and everything else with normal noise of standard deviation 0.02.

    The same seed gives the same weights on the same kind of device.
    """
    generator: torch.Generator | None = None
    for name, tensor in destinations.items():
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
            continue
        if generator is None:
            generator = torch.Generator(tensor.device).manual_seed(seed)
        tensor.normal_(std=_STD, generator=generator)
