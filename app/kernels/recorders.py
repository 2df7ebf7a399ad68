"""Recorders of the kernels that a callable launches, so that they can be run again as one.

On a CPU a recording is a program of native kernels that read the step's size from its header: one serves every batch.
On a GPU it is a CUDA graph, whose launches are of one size for good.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.kernels import dispatch
from app.kernels.native.program import Program

Work = Callable[[], None]
"""Launches kernels."""

_SPARE_BYTES = 128 << 20
"""Bytes of a GPU's memory that are left free: no further graph is recorded where there are fewer."""


class ProgramRecorder:
    """Records native kernels."""

    def record(self, work: Work) -> Program:
        """A program of the kernels that ``work`` launches, none of which is run.

        Raises:
            FallbackError: a kernel has no native form for its arguments; the message names it.
        """
        with dispatch.recording() as calls:
            work()
        return Program(dispatch.pool(), calls, dispatch.isa())


class GraphRecorder:
    """Records what is launched on a GPU; its graphs share one pool of memory.

    Where Triton's kernels are interpreted a recording is the callable itself: all is as with graphs, but for the
    launches.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, work: Work) -> Work | None:
        """A function that launches again, on the same buffers, what ``work`` launches.

        None: there is no memory for a further graph.
        """
        if self._pool is None:
            return work
        if torch.cuda.mem_get_info()[0] < _SPARE_BYTES:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        return graph.replay


Recorder = ProgramRecorder | GraphRecorder
