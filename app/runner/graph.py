"""A step of the model recorded once and replayed as one call.

On a CPU a recording is a program of native kernels that read the step's size from its header: one serves every batch,
prefill and decode alike, nothing is padded. On a GPU it is a CUDA graph, whose launches are of one size for good:
decode steps are padded to the next of a few numbers of rows, everything else is launched op by op.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

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


class Bucket(NamedTuple):
    """A size that decode steps are padded to."""

    rows: int
    max_seq_len: int
    """Tokens of the longest sequence; what lies beyond a row's own length costs a program that ends at once."""


Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Records what a callable launches, without running it; the result runs it again, on the same buffers."""

_SMALL = (1, 2, 4, 8)
_STEP = 16
_MOST_ROWS = 256
_SHORTEST = 1024
_LONGER = 4


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8 and then every sixteenth to 256, as far as ``max_rows``, which is one itself."""
    sizes = (*_SMALL, *range(_STEP, _MOST_ROWS + 1, _STEP))
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in sizes if size < most), most)


def length_buckets(max_seq_len: int) -> tuple[int, ...]:
    """1,024 and its multiples by powers of four, as far as ``max_seq_len``, which is the last."""
    sizes = [_SHORTEST]
    while sizes[-1] < max_seq_len:
        sizes.append(sizes[-1] * _LONGER)
    return (*sizes[:-1], max_seq_len)


class DecodeGraphs:
    """Decode steps of a GPU, one recording a bucket.

    A bucket's first step is launched op by op, which compiles and loads its kernels; its second is recorded, while the
    server serves. Kernels write into buffers that are given to them, so recordings hold no activations of their own;
    what libraries allocate comes from one pool that all recordings share.

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
        self._lengths = length_buckets(max_seq_len)
        self._recordings: dict[Bucket, Work | None] = {}

    def bucket(self, rows: int, max_seq_len: int) -> Bucket | None:
        """The smallest that holds such a step; None where none does."""
        if rows > self._rows[-1]:
            return None
        return Bucket(
            next(size for size in self._rows if size >= rows),
            next(length for length in self._lengths if length >= max_seq_len),
        )

    def run(self, bucket: Bucket) -> bool:
        """Launches the padded step that stands in the buffers. Returns whether as one recording."""
        if bucket not in self._recordings:
            self._compute(bucket)
            self._recordings[bucket] = None
            return False
        recording = self._recordings[bucket]
        if recording is None:
            recording = self._recordings[bucket] = self._capture(lambda: self._compute(bucket))
        recording()
        return True


def cuda_capture() -> Capture:
    """CUDA graphs that share one pool of memory. Not yet run on a GPU."""
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Work) -> Work:
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
