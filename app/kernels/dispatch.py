"""Which code runs a kernel: native on a CPU that has it, Triton on a GPU, else the plain torch of ``reference.py``.

A native kernel is *emitted*: run at once, or appended to the recording under way (:func:`recording`), which
:class:`~app.kernels.recorders.ProgramRecorder` makes one program of. A Triton kernel lies in the op's ``triton.py``,
imported only where it is to run. The choice is the process's: :func:`configure` is called once, at its entry.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib.util
from collections.abc import Iterator

import torch
from torch import Tensor

from app.kernels.native.abi import DTYPES, Dim
from app.kernels.native.library import NativeError, best_isa
from app.kernels.native.program import Call, Program, ThreadPool


class Mode(enum.Enum):
    """Which kernels a process runs: the values of ``TUILI_KERNELS``."""

    AUTO = "auto"
    """Native where there is a native kernel for the arguments, else reference."""
    REFERENCE = "reference"
    STRICT = "strict"
    """Native on a CPU, Triton on a GPU, and an error where that is not possible."""
    INTERPRET = "interpret"
    """Triton's kernels in its interpreter, on a CPU: to test them (needs ``TRITON_INTERPRET=1``)."""


class FallbackError(RuntimeError):
    """A kernel would have had to fall back to plain torch, which strict mode forbids."""


class _State:
    """How this process runs its kernels."""

    mode = Mode.AUTO
    threads = 1
    isa: str | None = None
    pool: ThreadPool | None = None
    recording: list[Call] | None = None


_state = _State()


def configure(mode: Mode, threads: int, isa: str | None = None) -> None:
    """Sets how this process runs its kernels.

    Args:
        threads: threads of the native pool.
        isa: instruction set of the native kernels; None: the machine's best.
    """
    if _state.pool is not None and _state.pool.threads != threads:
        _state.pool = None
    _state.mode, _state.threads, _state.isa = mode, threads, isa
    unavailable.cache_clear()


@functools.cache
def unavailable() -> str | None:
    """Why there are no native kernels here; None when there are."""
    if _state.mode in (Mode.REFERENCE, Mode.INTERPRET):
        return f"TUILI_KERNELS={_state.mode.value}"
    try:
        best_isa()
    except NativeError as e:
        return str(e)
    return None


def native(op: str, *tensors: Tensor | None) -> bool:
    """Whether the native kernel takes these tensors: on a CPU, floating ones fp32 or bf16.

    Raises:
        FallbackError: it does not, in strict mode.
    """
    why = unavailable()
    for tensor in tensors:
        if why is None and tensor is not None:
            if tensor.device.type != "cpu":
                why = f"a tensor is on {tensor.device}"
            elif tensor.is_floating_point() and tensor.dtype not in DTYPES:
                why = f"a tensor is {tensor.dtype}"
    if why is not None:
        fall_back(op, why)
    return why is None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_triton(tensor: Tensor) -> bool:
    """Whether the op's Triton kernel takes a call with this tensor: on a GPU, or on a CPU that interprets it.

    Tensors of the meta device count as a GPU's: calls with them are collected, to be compiled ahead of time.
    """
    return runs_triton_on(tensor.device)


def runs_triton_on(device: torch.device) -> bool:
    """Whether Triton's kernels take calls with tensors of this device."""
    if _state.mode is Mode.REFERENCE:
        return False
    if device.type == "cpu":
        return _state.mode is Mode.INTERPRET
    return _has_triton()


def fall_back(op: str, why: str) -> None:
    """Reports that a kernel is about to run its reference although that is not its device's best.

    Raises:
        FallbackError: in strict mode, or while recording, which plain torch cannot be part of.
    """
    refuse_recording(op, why)
    if _state.mode is Mode.STRICT:
        raise FallbackError(f"{op}: {why}, and TUILI_KERNELS=strict allows no plain torch")


def refuse_recording(op: str, why: str) -> None:
    """Reports an op that no recording can hold. Raises :class:`FallbackError` while one is under way."""
    if _state.recording is not None:
        raise FallbackError(f"{op}: {why}, so that it cannot be recorded")


def pool() -> ThreadPool:
    """The threads of this process's native kernels."""
    if _state.pool is None:
        _state.pool = ThreadPool(_state.threads)
    return _state.pool


def isa() -> str:
    """The instruction set in use."""
    return _state.isa or best_isa()


def emit(
    calls: list[Call],
    *,
    tokens: int = 0,
    rows: int = 0,
    logits: int = 0,
    samples: int = 0,
    max_seq_len: int = 0,
    max_query_len: int = 0,
) -> None:
    """Runs calls at once, or appends them to the recording under way.

    Args:
        tokens, rows, logits, samples, max_seq_len, max_query_len: sizes of the step that the calls are run as.
    """
    if _state.recording is not None:
        _state.recording += calls
        return
    program = Program(pool(), calls, isa())
    program.run(
        tokens=tokens,
        rows=rows,
        logits=logits,
        samples=samples,
        max_seq_len=max_seq_len,
        max_query_len=max_query_len,
    )


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """A context in which native kernels run nothing; the list gains their calls. Falling back raises."""
    if _state.recording is not None:
        raise RuntimeError("a recording is under way already")
    calls = list[Call]()
    _state.recording = calls
    try:
        yield calls
    finally:
        _state.recording = None


__all__ = [
    "Call",
    "Dim",
    "FallbackError",
    "Mode",
    "configure",
    "emit",
    "fall_back",
    "isa",
    "native",
    "pool",
    "recording",
    "refuse_recording",
    "runs_triton",
    "runs_triton_on",
    "unavailable",
]
