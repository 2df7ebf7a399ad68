"""Buffers that the host fills and the device reads."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from app.runner.device import runs_ahead

_HOST = torch.device("cpu")
STEPS_UNDER_WAY = 2
"""That copies to and from a GPU are made for: the engine reads one step before it submits the next but one."""


class _Pinned:
    """Host memory that a GPU copies from or to by itself, and when it is through with it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.values = torch.zeros(shape, dtype=dtype, pin_memory=True)
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]


class StagedBuffer:
    """A buffer that numpy fills on the host and kernels read on the device: on a CPU the same memory.

    On a GPU what was filled in goes through pinned memory of the step's own, so that nobody waits for a copy: the host
    goes on to fill in the next step.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        host = torch.zeros(shape, dtype=dtype)
        self._host = host
        self._device = host if device == _HOST else torch.zeros(shape, dtype=dtype, device=device)
        self._pinned = [_Pinned(shape, dtype) for _ in range(STEPS_UNDER_WAY)] if runs_ahead(device) else []
        self._turn = 0
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
        if self._pinned:
            pinned = self._pinned[self._turn]
            self._turn = (self._turn + 1) % len(self._pinned)
            pinned.done.synchronize()  # long since, unless more steps are under way than there should be
            pinned.values[:count].copy_(self._host[:count])
            self._device[:count].copy_(pinned.values[:count], non_blocking=True)
            pinned.done.record()
        elif self._device is not self._host:
            self._device[:count].copy_(self._host[:count])
        return self._device[:count]


class Fetched(Protocol):
    """Values on their way to the host."""

    def tolist(self) -> list[Any]:
        """Waits for them."""


class ReturningBuffer:
    """A buffer that kernels fill on the device and the host reads, while the device is at work on the next step.

    Args:
        device_buffer: [N], overwritten by the next step.
    """

    def __init__(self, device_buffer: Tensor) -> None:
        self._device = device_buffer
        ahead = runs_ahead(device_buffer.device)
        self._array = device_buffer.numpy() if device_buffer.device == _HOST else None
        self._side = torch.cuda.Stream() if ahead else None  # type: ignore[no-untyped-call]
        # One more than steps under way: a result is read after the step behind it has been launched.
        shape, dtype = tuple(device_buffer.shape), device_buffer.dtype
        self._pinned = [_Pinned(shape, dtype) for _ in range(STEPS_UNDER_WAY + 1)] if ahead else []
        self._turn = 0

    def fetch(self, count: int) -> Fetched:
        """The first ``count`` entries as they are after what has been launched."""
        if self._array is not None:
            return self._array[:count].copy()
        kept = self._device[:count].clone()
        if self._side is None:
            return kept
        pinned = self._pinned[self._turn]
        self._turn = (self._turn + 1) % len(self._pinned)
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            pinned.values[:count].copy_(kept, non_blocking=True)
            pinned.done.record()
        kept.record_stream(self._side)
        return _Copied(pinned.values[:count], pinned.done)


class _Copied(NamedTuple):
    """A copy that a GPU makes; see :class:`Fetched`."""

    values: Tensor
    ready: torch.cuda.Event

    def tolist(self) -> list[Any]:
        self.ready.synchronize()
        values: list[Any] = self.values.tolist()
        return values
