"""Random weights in place of a checkpoint's, to measure and to test shapes for which there is none."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from app.quant.destination import Destination

_STD = 0.02


def fill_dummy_weights(destinations: Mapping[str, Destination], seed: int, device: torch.device | str = "cpu") -> None:
    """Fills norm weights with ones and everything else with normal noise of standard deviation 0.02.

    The same seed gives the same weights on the same kind of device, in whatever format they are kept.

    Args:
        destinations: checkpoint name -> where its tensor goes.
        device: the device on which the noise is drawn.
    """
    generator = torch.Generator(device).manual_seed(seed)
    for name, destination in destinations.items():
        shape = tuple(destination.shape)
        if name.endswith(".weight") and len(shape) == 1:
            destination.copy_(torch.ones(shape, device=device))
        else:
            destination.copy_(torch.empty(shape, device=device).normal_(std=_STD, generator=generator))
