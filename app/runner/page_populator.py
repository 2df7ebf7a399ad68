"""Takes the KV cache's memory from the operating system ahead of its use.

Pages cost nothing until they are written, and then a fault each: 2 MiB to find and to zero, in the middle of a step, in
every layer at once, for the layers fill alike. On a virtual machine that was measured at 5 ms a page, 150 ms a step. A
thread of the lowest priority takes them a little earlier; what it has not got to yet faults as before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Sequence

from torch import Tensor

_REGION = 2 << 20
"""Bytes that are populated at a time: a huge page."""
_REGIONS_AHEAD = 2
"""Regions that are populated beyond the one in use."""
_MADV_POPULATE_WRITE = 23  # Linux 5.14; an older kernel refuses it, and we leave it at that


class _Demand:
    """What a populator asks of its thread, which has no reference to the populator itself."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.wanted = 0
        """Bytes of each layer that should be populated."""
        self.over = False
        """Whether the populator is gone."""


class PagePopulator:
    """Populates the memory of ``layers``, each [num_blocks, ...], as blocks come into use from the lowest on."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self._block_bytes = layers[0].nbytes // max(1, layers[0].shape[0])
        self._layer_bytes = layers[0].nbytes
        self._demand = _Demand()
        weakref.finalize(self, _end, self._demand).atexit = False
        if sys.platform == "linux" and self._layer_bytes > _REGION:
            spans = [(layer.data_ptr(), layer) for layer in layers]
            threading.Thread(target=_populate, args=(self._demand, spans), daemon=True).start()
            self.note(0)

    def note(self, block_id: int) -> None:
        """Tells that a block is about to be written."""
        demand = self._demand
        wanted = min((block_id * self._block_bytes // _REGION + 1 + _REGIONS_AHEAD) * _REGION, self._layer_bytes)
        if wanted > demand.wanted:
            with demand.condition:
                demand.wanted = wanted
                demand.condition.notify()


def _end(demand: _Demand) -> None:
    with demand.condition:
        demand.over = True
        demand.condition.notify()


def _populate(demand: _Demand, spans: list[tuple[int, Tensor]]) -> None:
    """A populator's thread: ends when the populator is gone, or at once where the kernel has no such call."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    done = 0
    while True:
        with demand.condition:
            demand.condition.wait_for(lambda: demand.over or demand.wanted > done)  # noqa: B023 - called at once
            if demand.over:
                return
            size = min(_REGION, demand.wanted - done)
        for address, _ in spans:
            if madvise(address + done, size, _MADV_POPULATE_WRITE):
                return
        done += size
