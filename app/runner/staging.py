"""Copies between host and device that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.runner.device import runs_ahead

STEPS_UNDER_WAY = 2
"""Steps that may be under way at once on a GPU: the engine reads one before it submits the next but one."""
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
    """Host memory that a GPU copies from by itself, and an event that tells when it has."""

    def __init__(self, nbytes: int) -> None:
        self.values = torch.zeros(nbytes, dtype=_BYTE, pin_memory=True)
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]


class StagedPack:
    """Buffers that numpy fills on the host and kernels read on the device, all brought there by one copy.

    On a CPU both sides are the same memory. On a GPU what was filled in goes through pinned memory of the step's own,
    so that nobody waits for a copy: the host goes on to fill in the next step.

    Args:
        fields: length and dtype of each buffer.
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
        """The buffers, in the order of ``fields``."""

    def upload(self, last: int) -> None:
        """Copies all buffers to the device; of the last one only the first ``last`` entries."""
        end = self._last + last * self._last_itemsize
        if self._pinned:
            pinned = self._pinned[self._turn]
            self._turn = (self._turn + 1) % len(self._pinned)
            pinned.done.synchronize()  # does not wait, unless more steps are under way than there should be
            pinned.values[:end].copy_(self._host[:end])
            self._device[:end].copy_(pinned.values[:end], non_blocking=True)
            pinned.done.record()
        elif self._device is not self._host:
            self._device[:end].copy_(self._host[:end])


def _part(memory: Tensor, offset: int, length: int, dtype: torch.dtype) -> Tensor:
    return memory[offset : offset + length * dtype.itemsize].view(dtype)


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """The values on the device; a GPU copies them when its earlier work is done."""
    host = torch.from_numpy(values)
    return host.pin_memory().to(device, non_blocking=True) if runs_ahead(device) else host.to(device)


class Fetched(Protocol):
    """Values on their way to the host."""

    def ready(self) -> bool:
        """Whether they are there."""

    def arrays(self) -> list[NDArray[Any]]:
        """Waits for the values; one array for each tensor."""


class Returns:
    """Brings results to the host while the device is at work on the next step."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device) if runs_ahead(device) else None  # type: ignore[no-untyped-call]

    def of(self, tensor: Tensor) -> Callable[[], Fetched]:
        """A function that fetches the tensor as it is after what has been launched; the next step may write to it.

        On a CPU it calls nothing of torch: right after a step, whose weights have taken the caches, the first such
        call costs 0.2 ms.
        """
        if tensor.device.type == "cpu":
            array = tensor.numpy()
            return lambda: _Copy(array.copy())
        return lambda: self.fetch(tensor.clone())

    def snapshot(self, tensor: Tensor) -> Fetched:
        """What :meth:`of` fetches of a tensor that is fetched once."""
        return self.of(tensor)()

    def fetch(self, *tensors: Tensor) -> Fetched:
        """The tensors' values after all that has been launched; they may not be written to any more."""
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
    """Tensors of a CPU; see :class:`Fetched`."""

    tensors: tuple[Tensor, ...]

    def ready(self) -> bool:
        return True

    def arrays(self) -> list[NDArray[Any]]:
        return [tensor.numpy() for tensor in self.tensors]


class _Copy(NamedTuple):
    """A copy of a CPU's tensor; see :class:`Fetched`."""

    array: NDArray[Any]

    def ready(self) -> bool:
        return True

    def arrays(self) -> list[NDArray[Any]]:
        return [self.array]


class _Copied(NamedTuple):
    """Values of a GPU, which it copies to pinned memory; see :class:`Fetched`."""

    copies: list[Tensor]
    copied: torch.cuda.Event

    def ready(self) -> bool:
        return bool(self.copied.query())  # type: ignore[no-untyped-call]

    def arrays(self) -> list[NDArray[Any]]:
        self.copied.synchronize()
        return [copy.numpy() for copy in self.copies]
