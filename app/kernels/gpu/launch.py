"""Starts Triton kernels, or writes down how the engine would start them.

Every launch of the engine goes through :func:`launch`, so that what a test compiles ahead of time for a GPU that is not
there are the very signatures, constants and launch shapes of a step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Triton's default is about to change, and it warns until somebody has chosen.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton

from app.kernels.gpu import interpreter
from app.kernels.gpu.tuning import capability

Grid = tuple[int, ...]

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` when Triton was imported), on CPU tensors."""
if INTERPRETED:
    interpreter.quicken()

_TYPES = {
    torch.bool: "i1",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
_INT32_MAX = (1 << 31) - 1
_HOPPER = 90


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch of a kernel, as the compiler sees it."""

    kernel: Any
    """The ``@triton.jit`` function."""
    signature: tuple[tuple[str, str], ...]
    """(parameter, type): ``*bf16``, ``i32``, ``fp32``, or ``constexpr``."""
    constants: tuple[tuple[str, Any], ...]
    """Parameters known when compiling."""
    aligned: tuple[str, ...]
    """Pointers and integers that are multiples of 16."""
    grid: Grid
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.kernel.__name__)


class _State:
    collected: list[Launch] | None = None


_state = _State()


@contextlib.contextmanager
def collecting() -> Iterator[list[Launch]]:
    """A context in which no kernel is started, and tensors may be on the meta device; the list gains the launches."""
    if _state.collected is not None:
        raise RuntimeError("launches are being collected already")
    launches = list[Launch]()
    _state.collected = launches
    try:
        yield launches
    finally:
        _state.collected = None


def launch(
    kernel: Any, grid: Grid, args: dict[str, Any], constants: dict[str, Any], *, num_warps: int = 4, num_stages: int = 3
) -> None:
    """Starts a kernel on the current stream; does not wait for it.

    Args:
        kernel: a ``@triton.jit`` function.
        grid: programs along up to three axes; with an empty one nothing is started.
        args: by parameter; tensors, integers, floats, or None for a pointer that is not given.
        constants: ``tl.constexpr`` parameters but for ``PDL``, which every kernel has.
    """
    if 0 in grid:
        return
    pdl = _overlaps()
    constants = {**constants, "PDL": pdl}
    if _state.collected is not None:
        _state.collected.append(_describe(kernel, grid, args, constants, num_warps, num_stages))
        return
    options = {"launch_pdl": True} if pdl else {}
    kernel[grid](**args, **constants, num_warps=num_warps, num_stages=num_stages, **options)


def _overlaps() -> bool:
    """Whether a kernel starts before the one ahead of it has ended (:func:`app.kernels.gpu.lib.wait_for_inputs`)."""
    return not INTERPRETED and capability() >= _HOPPER


def _describe(
    kernel: Any, grid: Grid, args: dict[str, Any], constants: dict[str, Any], num_warps: int, num_stages: int
) -> Launch:
    """A launch specialised as by Triton: None and 1 become constants, multiples of 16 are noted, unless forbidden."""
    varying = {parameter.name for parameter in getattr(kernel, "params", ()) if parameter.do_not_specialize}
    fixed = {name: value for name, value in args.items() if value is None or (_is_one(value) and name not in varying)}
    constants = {**constants, **fixed}
    signature, aligned = [], []
    for name in kernel.arg_names:
        if name in constants:
            signature.append((name, "constexpr"))
            continue
        value = args[name]
        signature.append((name, _type_of(value)))
        if _is_aligned(value) and name not in varying:
            aligned.append(name)
    return Launch(
        kernel, tuple(signature), tuple(sorted(constants.items())), tuple(aligned), grid, num_warps, num_stages
    )


def _is_one(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == 1


def _is_aligned(value: object) -> bool:
    """Whether an integer, or a tensor's offset within its memory in bytes, is a multiple of 16.

    What torch allocates is aligned further than that.
    """
    if isinstance(value, Tensor):
        return value.storage_offset() * value.itemsize % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def _type_of(value: object) -> str:
    match value:
        case Tensor():
            return "*" + _TYPES[value.dtype]
        case bool():
            return "i1"
        case int():
            return "i32" if -_INT32_MAX <= value <= _INT32_MAX else "i64"
        case float():
            return "fp32"
        case _:
            raise TypeError(f"a kernel takes no {type(value).__name__}")
