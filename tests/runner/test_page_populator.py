from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.kernels import dispatch
from app.kernels.native.library import allocate
from app.runner.page_populator import PagePopulator

MIB = 1 << 20
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or dispatch.unavailable() is not None, reason="no pages to populate here"
)


def resident(tensor: torch.Tensor) -> int:
    """Bytes of a tensor that the operating system has given memory to."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    found = 0
    with Path("/proc/self/smaps").open(encoding="ascii") as maps:
        inside = False
        for line in maps:
            head = line.split(maxsplit=1)[0]
            if "-" in head and not head.endswith(":"):
                low, high = (int(part, 16) for part in head.split("-"))
                inside = low < end and high > start
            elif inside and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_memory_comes_a_little_ahead_of_use_and_no_further() -> None:
    layers = [allocate((64, MIB // 4), torch.float32) for _ in range(2)]
    populator = PagePopulator(layers)
    until(lambda: all(resident(layer) >= 6 * MIB for layer in layers))
    assert all(resident(layer) < 16 * MIB for layer in layers)
    populator.note(20)
    until(lambda: all(resident(layer) >= 26 * MIB for layer in layers))
    assert all(resident(layer) < 40 * MIB for layer in layers)
    populator.note(63)
    until(lambda: all(resident(layer) >= 64 * MIB for layer in layers))
    assert all(not layer.any() for layer in layers)


def test_its_thread_goes_with_it() -> None:
    before = set(threading.enumerate())
    populator = PagePopulator([allocate((16, MIB), torch.float32)])
    (thread,) = set(threading.enumerate()) - before
    del populator
    gc.collect()
    until(lambda: not thread.is_alive())


def test_none_outlives_a_populator_that_goes_at_once() -> None:
    """Its last reference may go while the thread looks what is wanted."""
    layers = [allocate((4, MIB), torch.float32)]
    before, interval = set(threading.enumerate()), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(500):
            PagePopulator(layers)
    finally:
        sys.setswitchinterval(interval)
    until(lambda: set(threading.enumerate()) <= before)
