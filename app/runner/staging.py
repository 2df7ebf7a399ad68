"""Buffers that the host fills and the device reads."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class StagedBuffer:
    """A buffer that numpy fills on the host and kernels read on the device: on a CPU the same memory."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        host = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._host = host
        self._device = host if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
        self.array: NDArray[Any] = host.numpy()
        """The host's side."""

    @property
    def whole(self) -> Tensor:
        """The device's side, of one address for good."""
        return self._device

    def view(self, count: int) -> Tensor:
        """The first ``count`` entries on the device, as they were last uploaded; of one address for good."""
        return self._device[:count]

    def upload(self, count: int) -> Tensor:
        """The first ``count`` entries on the device, as they stand in :attr:`array` now."""
        if self._device is not self._host:
            # Waits for the copy: the next step, prepared while this one runs, writes into the same host memory.
            self._device[:count].copy_(self._host[:count])
        return self._device[:count]
