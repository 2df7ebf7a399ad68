"""A step of the model recorded once and replayed as one call.

On a CPU a recording is a program of native kernels that read the step's size from its header: one serves every batch,
prefill and decode alike, nothing is padded. On a GPU it is a CUDA graph, whose launches are of one size for good:
decode steps are padded to the next of a few numbers of rows, everything else is launched op by op.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from app.kernels import dispatch
from app.kernels.native.program import Program

_log = logging.getLogger(__name__)


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


class Bucket(NamedTuple):
    """A size that decode steps are padded to."""

    rows: int
    max_seq_len: int
    """Tokens of the longest sequence; what lies beyond a row's own length costs a program that ends at once."""


Work = Callable[[], None]
Capture = Callable[[Work], Work | None]
"""Records what a callable launches, without running it; the result runs it again, on the same buffers. None: there is
no memory for one more."""

_SMALL = (1, 2, 4, 8)
_STEP = 16
_MOST_ROWS = 256
_SHORT = 2048
_FEW_ROWS = 16
"""With which programs beyond a row's length are too few to be felt."""
_BYTES_PER_LAYER = 128 << 10
"""That the driver takes for a recording of a model, with room to spare: on an H200 (driver 580) four recordings of 36
layers took 2 MiB in all (``driver_bytes`` of the GPU report); whole steps of 32 layers have been seen to take 24 to 28
MiB with other kernels (vLLM, pull request 22897). What does not fit is not recorded."""
_SPARE_BYTES = 128 << 20
"""What a recording leaves free."""


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8 and then every sixteenth to 256, as far as ``max_rows``, which is one itself."""
    sizes = (*_SMALL, *range(_STEP, _MOST_ROWS + 1, _STEP))
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in sizes if size < most), most)


def length_buckets(rows: int, max_seq_len: int) -> tuple[int, ...]:
    """2,048 and ``max_seq_len``, the latter alone for few rows."""
    return (max_seq_len,) if rows <= _FEW_ROWS or max_seq_len <= _SHORT else (_SHORT, max_seq_len)


def graph_bytes(num_layers: int, max_rows: int, max_seq_len: int) -> int:
    """What all recordings of a model's decode steps may take of a GPU's memory."""
    recordings = sum(len(length_buckets(rows, max_seq_len)) for rows in row_buckets(max_rows))
    return recordings * num_layers * _BYTES_PER_LAYER


class DecodeGraphs:
    """Decode steps of a GPU, one recording a bucket.

    A bucket's first step is launched op by op, which compiles and loads its kernels; its second is recorded, while the
    server serves. Kernels write into buffers that are given to them, so recordings hold no activations of their own;
    what libraries allocate comes from one pool that all recordings share, and what the driver takes is planned for
    (:func:`graph_bytes`). Should it take more, further buckets are launched op by op.

    Args:
        compute: launches a step of a bucket's size over the step buffers.
        capture: of the device.
        max_rows: of one step.
        max_seq_len: of any sequence.
    """

    def __init__(self, compute: Callable[[Bucket], None], capture: Capture, *, max_rows: int, max_seq_len: int) -> None:
        self._compute = compute
        self._capture = capture
        self._rows = row_buckets(max_rows)
        self._max_seq_len = max_seq_len
        self._recordings: dict[Bucket, Work | None] = {}
        """Of buckets seen; None where the next step is to be recorded."""
        self._full = False

    def bucket(self, rows: int, max_seq_len: int) -> Bucket | None:
        """The smallest that holds such a step; None where none does."""
        if rows > self._rows[-1]:
            return None
        size = next(size for size in self._rows if size >= rows)
        lengths = length_buckets(size, self._max_seq_len)
        return Bucket(size, next(length for length in lengths if length >= max_seq_len))

    def run(self, bucket: Bucket) -> bool:
        """Launches the padded step that stands in the buffers. Returns whether as one recording."""
        recording = self._recordings.get(bucket)
        if recording is None and bucket in self._recordings and not self._full:
            recording = self._recordings[bucket] = self._capture(lambda: self._compute(bucket))
            if recording is None:
                self._full = True
                _log.warning("no memory for more decode graphs: steps of other sizes are launched op by op")
        if recording is None:
            self._compute(bucket)
            self._recordings[bucket] = None
            return False
        recording()
        return True


def cuda_capture() -> Capture:
    """CUDA graphs that share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Work) -> Work | None:
        if torch.cuda.mem_get_info()[0] < _SPARE_BYTES:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        return graph.replay

    return capture


def run_again(work: Work) -> Work:
    """Stands in for graphs where Triton's kernels are interpreted: all is as with them, but for the launches."""
    return work


def capture_on(device: torch.device) -> Capture | None:
    """How launches on a device are recorded; None where nothing is ever launched."""
    if device.type == "meta":
        return None
    return cuda_capture() if device.type == "cuda" else run_again
