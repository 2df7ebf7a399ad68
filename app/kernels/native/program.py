"""Programs of native ops: one op run at once, or a whole step recorded and replayed as one call."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from ctypes import c_uint64

from torch import Tensor

from app.kernels.native.abi import ARGS, DTYPES, Dim, Op, Step
from app.kernels.native.library import NativeError, best_isa, kind, library

# Long enough for the host to go from one step to the next, short enough not to keep the API process off its core.
_STEP_SPIN_NS = 50_000
# A chunk lasts some 10 us: a thread that needs longer than this is not running.
_OP_SPIN_NS = 200_000


class ThreadPool:
    """Threads that run programs; the calling thread is one of them.

    Raises:
        NativeError: there are no native kernels here, or no threads to have.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._library = library()
        self.handle = self._library.tuili_pool_new(threads, _STEP_SPIN_NS, _OP_SPIN_NS)
        if not self.handle:
            raise NativeError(f"cannot start {threads} threads")
        # Reentrant: a collection within `run` may free another program.
        self.lock = threading.RLock()
        """Held while a program runs: a process may have several engines, the threads do one step at a time."""
        # Each program holds its pool, so that the last program is freed before the threads end.
        weakref.finalize(self, self._library.tuili_pool_free, self.handle).atexit = False


class Call:
    """A native op with its arguments; keeps the tensors that they point into.

    Args:
        name: name of the op.
        dim: the number of the step's header that counts the op's rows.
        arguments: values of its struct's fields: a tensor stands for its address, None for NULL.
    """

    def __init__(self, name: str, dim: Dim, **arguments: Tensor | int | float | None) -> None:
        self.name = name
        self.dim = dim
        self.tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
        values = {field: value.data_ptr() if isinstance(value, Tensor) else value for field, value in arguments.items()}
        self.args = ARGS[name](**values)


def dtype_code(tensor: Tensor) -> int:
    """The TuiliDType of a tensor's elements."""
    return DTYPES[tensor.dtype]


class Program:
    """Calls in order, ready to run on a pool as often as wanted.

    Args:
        isa: instruction set; the machine's best when absent.
    """

    def __init__(self, pool: ThreadPool, calls: Sequence[Call], isa: str | None = None) -> None:
        isa = isa or best_isa()
        self.isa = isa
        """Instruction set that the program runs."""
        self._pool = pool
        self._calls = list(calls)
        self._step = Step()
        ops = (Op * len(calls))(
            *(Op(kind(call.name, isa), ctypes.addressof(call.args), int(call.dim), 0) for call in calls)
        )
        lib = library()
        self._handle = lib.tuili_program_new(pool.handle, ops, len(calls))
        if not self._handle:
            raise NativeError("out of memory")
        self._run = lib.tuili_run
        weakref.finalize(self, _free, pool, self._handle).atexit = False

    @property
    def names(self) -> list[str]:
        """Names of the ops, in order."""
        return [call.name for call in self._calls]

    def run(
        self,
        *,
        tokens: int = 0,
        rows: int = 0,
        logits: int = 0,
        samples: int = 0,
        max_seq_len: int = 0,
        max_query_len: int = 0,
        op_ns: ctypes.Array[c_uint64] | None = None,
    ) -> None:
        """Runs one step. Other Python threads go on meanwhile.

        Args:
            tokens, rows, logits, samples: what the step's header counts.
            max_seq_len: tokens of the longest sequence.
            max_query_len: tokens of the largest row.
            op_ns: each op's time in nanoseconds is added to its element.
        """
        step = self._step
        step.count[0], step.count[1], step.count[2], step.count[3] = tokens, rows, logits, samples
        step.max_seq_len, step.max_query_len = max_seq_len, max_query_len
        with self._pool.lock:
            self._run(self._pool.handle, self._handle, ctypes.byref(step), op_ns)


def _free(pool: ThreadPool, handle: int) -> None:
    with pool.lock:
        library().tuili_program_free(pool.handle, handle)


__all__ = ["Call", "Dim", "Program", "ThreadPool", "dtype_code"]
