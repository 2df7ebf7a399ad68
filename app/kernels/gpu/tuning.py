"""Launch shapes from checked-in tables: ``tables/<device>.json``, behind it ``tables/default.json``.

A table maps an op to rows; a row is ``{"where": {...}, "shape": {...}}``. ``where`` names dimensions of the problem:
``"k": 4096`` has to be equal, ``"max_m": 64`` bounds from above, ``"min_capability": 90`` from below. The first row
that fits counts, so that rows go from narrow to wide and the last one has no ``where``.
``benchmarks/gpu/tune.py`` writes a device's; nothing is tuned while serving.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

TABLES = Path(__file__).parent / "tables"
_DEFAULT = "default"
_HOPPER = 90


class Row(msgspec.Struct, frozen=True):
    """A launch shape and the problems it is for."""

    shape: dict[str, int]
    """Constants of the kernel, ``num_warps`` and ``num_stages``."""
    where: dict[str, int] = {}

    def fits(self, dims: dict[str, int]) -> bool:
        """Whether the problem is one of those."""
        return all(_fits(name, bound, dims) for name, bound in self.where.items())


def _fits(name: str, bound: int, dims: dict[str, int]) -> bool:
    if name.startswith("max_"):
        return dims[name.removeprefix("max_")] <= bound
    if name.startswith("min_"):
        return dims[name.removeprefix("min_")] >= bound
    return dims[name] == bound


Table = dict[str, list[Row]]


def table_name(device_name: str) -> str:
    """File name, without its suffix, for a device as torch calls it: ``NVIDIA H200`` is ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def read_table(name: str) -> Table:
    """A device's table, empty if it has none."""
    path = TABLES / f"{name}.json"
    return msgspec.json.decode(path.read_bytes(), type=Table) if path.exists() else {}


@functools.cache
def _tables() -> tuple[Table, ...]:
    names = [_DEFAULT]
    if torch.cuda.is_available():
        names.insert(0, table_name(torch.cuda.get_device_name()))
    return tuple(read_table(name) for name in names)


@functools.lru_cache(maxsize=4096)
def _shape(op: str, dims: tuple[tuple[str, int], ...]) -> dict[str, int]:
    problem = dict(dims)
    for table in _tables():
        for row in table.get(op, []):
            if row.fits(problem):
                return row.shape
    raise KeyError(f"no launch shape for {op} {problem}")


class _State:
    target: int | None = None
    trial: tuple[str, dict[str, int]] | None = None


_state = _State()


@contextlib.contextmanager
def compiling_for(capability: int) -> Iterator[None]:
    """A context in which launch shapes are those for GPUs of a compute capability (80 for sm_80)."""
    before, _state.target = _state.target, capability
    try:
        yield
    finally:
        _state.target = before


@contextlib.contextmanager
def trying(op: str, shape: dict[str, int]) -> Iterator[None]:
    """A context in which an op has this launch shape, whatever the problem."""
    before, _state.trial = _state.trial, (op, shape)
    try:
        yield
    finally:
        _state.trial = before


@functools.cache
def _capability_here() -> int:
    if not torch.cuda.is_available():
        return _HOPPER
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def capability() -> int:
    """Compute capability of the GPU that is launched or compiled for: 90 for sm_90, and where there is none."""
    return _state.target if _state.target is not None else _capability_here()


def launch_shape(op: str, **dims: int) -> dict[str, Any]:
    """Constants, ``num_warps`` and ``num_stages`` of an op for a problem of these dimensions.

    ``capability``, the GPU's, is one of them too: 90 where there is no GPU.

    Raises:
        KeyError: no table has a row that fits.
    """
    if _state.trial is not None and _state.trial[0] == op:
        return dict(_state.trial[1])
    return dict(_shape(op, (("capability", capability()), *sorted(dims.items()))))
