"""A step of the model recorded once and replayed as one call.

On a CPU a recording is a program of native kernels that read the step's size from its header: one serves every batch,
prefill and decode alike, nothing is padded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable

from app.kernels import dispatch
from app.kernels.native.program import Program


class StepGraphs:
    """Recordings of a step, one for each of its variants.

    Args:
        compute: runs the kernels of a step of a given variant over the step buffers at their full size.
    """

    def __init__(self, compute: Callable[[Hashable], None]) -> None:
        self._compute = compute
        self._programs: dict[Hashable, Program] = {}
        self.op_ns: ctypes.Array[ctypes.c_uint64] | None = None
        """Gains each op's nanoseconds while a step is profiled."""

    def capture(self, variant: Hashable) -> Program:
        """The recording of a variant, made when first asked for.

        Raises:
            FallbackError: a kernel of the step has no native form for its arguments; the message names it.
        """
        program = self._programs.get(variant)
        if program is None:
            with dispatch.recording() as calls:
                self._compute(variant)
            program = self._programs[variant] = Program(dispatch.pool(), calls, dispatch.isa())
        return program

    def profile(self, variant: Hashable) -> tuple[list[str], ctypes.Array[ctypes.c_uint64]]:
        """Names of a variant's ops, and their nanoseconds from here on; no other variant may be replayed any more."""
        names = self.capture(variant).names
        self.op_ns = (ctypes.c_uint64 * len(names))()
        return names, self.op_ns
