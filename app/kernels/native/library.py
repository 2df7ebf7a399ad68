"""The native library: found, loaded, and what of it this machine can run."""

from __future__ import annotations

import ctypes
import functools
import math
import weakref
from ctypes import POINTER, c_char_p, c_int32, c_size_t, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from app.kernels.native.abi import ARGS, Kind, Op, Step

ISAS = ("avx512_bf16", "avx512", "avx2")
"""Best first; a machine that runs one runs those after it."""


class NativeError(RuntimeError):
    """Native kernels are not available, or out of memory; the message says why in one line."""


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        NativeError: it was not built, does not load, or is of another version than this package.
    """
    files = sorted(Path(__file__).parent.glob("libtuili*.so"))
    if not files:
        raise NativeError("the package was installed without them (no C++ compiler, or not Linux on x86-64)")
    try:
        lib = ctypes.CDLL(str(files[-1]))
    except OSError as e:
        raise NativeError(f"they do not load: {e}") from None
    _declare(lib)
    for name, args in ARGS.items():
        kind = lib.tuili_kind(name.encode(), ISAS[-1].encode())
        if kind and ctypes.cast(kind, POINTER(Kind)).contents.args_size != ctypes.sizeof(args):
            raise NativeError(f"{files[-1].name} is of another version ({name}); install the package again")
    return lib


def _declare(lib: ctypes.CDLL) -> None:
    lib.tuili_best_isa.restype, lib.tuili_best_isa.argtypes = c_char_p, []
    lib.tuili_kind.restype, lib.tuili_kind.argtypes = c_void_p, [c_char_p, c_char_p]
    lib.tuili_alloc.restype, lib.tuili_alloc.argtypes = c_void_p, [c_size_t]
    lib.tuili_free.restype, lib.tuili_free.argtypes = None, [c_void_p, c_size_t]
    lib.tuili_pool_new.restype, lib.tuili_pool_new.argtypes = c_void_p, [c_int32, c_uint64, c_uint64]
    lib.tuili_pool_free.restype, lib.tuili_pool_free.argtypes = None, [c_void_p]
    lib.tuili_program_new.restype, lib.tuili_program_new.argtypes = c_void_p, [c_void_p, POINTER(Op), c_int32]
    lib.tuili_program_free.restype, lib.tuili_program_free.argtypes = None, [c_void_p, c_void_p]
    lib.tuili_run.restype, lib.tuili_run.argtypes = None, [c_void_p, c_void_p, POINTER(Step), POINTER(c_uint64)]


def best_isa() -> str:
    """The instruction set that the kernels use on this machine.

    Raises:
        NativeError: there are no native kernels, or this CPU is too old for them.
    """
    name: str = library().tuili_best_isa().decode()
    if not name:
        raise NativeError("this CPU has no AVX2")
    return name


def kind(op: str, isa: str) -> int:
    """Address of an op's functions for an instruction set."""
    address = library().tuili_kind(op.encode(), isa.encode())
    if not address:
        raise NativeError(f"there is no native {op} for {isa}")
    return int(address)


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros in huge pages of its own, given back when the last view of it is gone.

    Memory is taken as it is first written.

    Raises:
        NativeError: out of address space.
    """
    count = math.prod(shape)
    nbytes = max(1, count * dtype.itemsize)
    lib = library()
    address = lib.tuili_alloc(nbytes)
    if not address:
        raise NativeError(f"cannot allocate {nbytes} bytes")
    memory = (ctypes.c_char * nbytes).from_address(address)
    # torch keeps `memory` alive for as long as a view of it lives. Not freed at exit, when everything goes anyway.
    weakref.finalize(memory, lib.tuili_free, address, nbytes).atexit = False
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape) if count else torch.empty(shape, dtype=dtype)
