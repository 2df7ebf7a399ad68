"""What the host sends to the device and gets back from it, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.runner.device import runs_ahead

STEPS_UNDER_WAY = 2
"""That copies to a GPU are made for: the engine reads one step before it submits the next but one."""
_ALIGNMENT = 256
_BYTE = torch.uint8


class StagedBuffer(NamedTuple):
    """A part of a :class:`StagedPack`."""

    array: NDArray[Any]
    """The host's side, to be filled."""
    whole: Tensor
    """The device's side, of one address for good."""

    def view(self, count: int) -> Tensor:
        """The first ``count`` entries on the device, as they were last uploaded."""
        return self.whole[:count]


class _Pinned:
    """Host memory that a GPU copies from by itself, and when it is through with it."""

    def __init__(self, nbytes: int) -> None:
        self.values = torch.zeros(nbytes, dtype=_BYTE, pin_memory=True)
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]


class StagedPack:
    """Buffers that numpy fills on the host and kernels read on the device, all brought there by one copy. On a CPU both
    sides are the same memory.

    On a GPU what was filled in goes through pinned memory of the step's own, so that nobody waits for a copy: the host
    goes on to fill in the next step.

    Args:
        fields: length and dtype of each.
    """

    def __init__(self, fields: Sequence[tuple[int, torch.dtype]], device: torch.device) -> None:
        offsets, end = [], 0
        for length, dtype in fields:
            offsets.append(end)
            end += -(-length * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        # numpy's zeros take memory as they are written.
        self._host = torch.from_numpy(np.zeros(end, dtype=np.uint8))
        self._device = self._host if device.type == "cpu" else torch.zeros(end, dtype=_BYTE, device=device)
        self._pinned = [_Pinned(end) for _ in range(STEPS_UNDER_WAY)] if runs_ahead(device) else []
        self._turn = 0
        self._last, self._last_itemsize = offsets[-1], fields[-1][1].itemsize
        self.buffers = [
            StagedBuffer(_part(self._host, offset, *field).numpy(), _part(self._device, offset, *field))
            for offset, field in zip(offsets, fields, strict=True)
        ]
        """In the order of the fields."""

    def upload(self, last: int) -> None:
        """Brings all buffers to the device, of the last one so many entries."""
        end = self._last + last * self._last_itemsize
        if self._pinned:
            pinned = self._pinned[self._turn]
            self._turn = (self._turn + 1) % len(self._pinned)
            pinned.done.synchronize()  # long since, unless more steps are under way than there should be
            pinned.values[:end].copy_(self._host[:end])
            self._device[:end].copy_(pinned.values[:end], non_blocking=True)
            pinned.done.record()
        elif self._device is not self._host:
            self._device[:end].copy_(self._host[:end])


def _part(memory: Tensor, offset: int, length: int, dtype: torch.dtype) -> Tensor:
    return memory[offset : offset + length * dtype.itemsize].view(dtype)


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """These values on the device, which copies them when it comes to it."""
    host = torch.from_numpy(values)
    return host.pin_memory().to(device, non_blocking=True) if runs_ahead(device) else host.to(device)


class Fetched(Protocol):
    """Values on their way to the host."""

    def arrays(self) -> list[NDArray[Any]]:
        """Waits for them."""


class Returns:
    """Brings results to the host while the device is at work on the next step."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device) if runs_ahead(device) else None  # type: ignore[no-untyped-call]

    def snapshot(self, tensor: Tensor) -> Fetched:
        """The tensor as it is after what has been launched; the next step may write to it."""
        if tensor.device.type == "cpu":
            return _Here((torch.from_numpy(tensor.numpy().copy()),))
        return self.fetch(tensor.clone())

    def fetch(self, *tensors: Tensor) -> Fetched:
        """The tensors as they are after what has been launched; nobody may write to them any more."""
        if self._side is None:
            return _Here(tensors)
        self._side.wait_stream(torch.cuda.current_stream())
        copies = []
        with torch.cuda.stream(self._side):
            for tensor in tensors:
                # torch keeps pinned memory for the next to ask once the device is through with it.
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies.append(copy.copy_(tensor, non_blocking=True))
                tensor.record_stream(self._side)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return _Copied(copies, ready)


class _Here(NamedTuple):
    """A CPU's; see :class:`Fetched`."""

    tensors: tuple[Tensor, ...]

    def arrays(self) -> list[NDArray[Any]]:
        return [tensor.numpy() for tensor in self.tensors]


class _Copied(NamedTuple):
    """Copies that a GPU makes; see :class:`Fetched`."""

    copies: list[Tensor]
    ready: torch.cuda.Event

    def arrays(self) -> list[NDArray[Any]]:
        self.ready.synchronize()
        return [copy.numpy() for copy in self.copies]
