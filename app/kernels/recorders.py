"""How the kernels that a callable launches are recorded, to be run again as one.

On a CPU a recording is a program of native kernels that read the step's size from its header: one serves every batch.
On a GPU it is a CUDA graph, whose launches are of one size for good.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.kernels import dispatch
from app.kernels.native.program import Program

Work = Callable[[], None]

_SPARE_BYTES = 128 << 20
"""What a graph leaves free."""


class ProgramRecorder:
    """Records native kernels."""

    def record(self, work: Work) -> Program:
        """What ``work`` launches, without running it.

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
        """Runs what ``work`` launches again, on the same buffers. None: there is no memory for one more."""
        if self._pool is None:
            return work
        if torch.cuda.mem_get_info()[0] < _SPARE_BYTES:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        return graph.replay


Recorder = ProgramRecorder | GraphRecorder
