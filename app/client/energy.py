"""Joules that this machine's processors and GPUs have used, where their counters can be read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

_POWERCAP = Path("/sys/class/powercap")


class EnergyCounters:
    """RAPL's counters of processor packages, and NVML's of GPUs.

    Args:
        powercap: directory in which the kernel shows RAPL's counters. Many kernels let root alone read them.
    """

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        # A package's parts (intel-rapl:0:1) are in its own figure.
        self._packages = [path for path in sorted(powercap.glob("intel-rapl:*")) if path.name.count(":") == 1]
        self._nvml, self._gpus = _gpus()
        self._last: dict[str, float] = {}
        self.read()

    def read(self) -> dict[str, float]:
        """Joules since the last call, by ``CPU`` and ``GPU``; of neither, where no counter can be read."""
        found: dict[str, float] = {}
        for path in self._packages:
            with suppress(OSError, ValueError):
                wraps = float((path / "max_energy_range_uj").read_text())
                self._add(found, "CPU", path.name, float((path / "energy_uj").read_text()) / 1e6, wraps / 1e6)
        for number, gpu in enumerate(self._gpus):
            # Older GPUs have no such counter.
            with suppress(self._nvml.NVMLError):
                joules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3
                self._add(found, "GPU", f"gpu {number}", joules, 0.0)
        return found

    def _add(self, found: dict[str, float], kind: str, counter: str, joules: float, wraps: float) -> None:
        last = self._last.get(counter, joules)
        self._last[counter] = joules
        used = joules - last if joules >= last else joules - last + wraps
        found[kind] = found.get(kind, 0.0) + max(0.0, used)


def _gpus() -> tuple[Any, list[Any]]:
    """NVML's module and the handles of the GPUs; none without the package nvidia-ml-py, or without a driver."""
    try:
        import pynvml
    except ImportError:
        return None, []
    try:
        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return pynvml, []
