"""A step of the model recorded once and replayed as one call.

On a CPU a recording is a program of native kernels that read the step's size from its header: one serves every batch,
prefill and decode alike, nothing is padded. On a GPU it is a CUDA graph, whose launches are of one size for good: steps
are padded to the next of a few sizes, large prompts are launched op by op.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Hashable, Sequence
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
    """A size that steps are padded to."""

    tokens: int
    rows: int
    max_query_len: int
    """1: decodes alone."""


Work = Callable[[], None]
Capture = Callable[[Work], Work | None]
"""Records what a callable launches, without running it; the result runs it again, on the same buffers. None: there is
no memory for one more."""

_SMALL = (1, 2, 4, 8)
_STEP = 16
_MOST_ROWS = 256
_MIXED_ROWS = (4, 16, 64, 256)
"""Of steps that are not decodes alone: what a row costs that only pads is little beside the tokens of a prompt."""
_MIXED_TOKENS = (*range(16, 65, 16), 96, 128, 192, 256, *range(384, 1024, 128), *range(1024, 2049, 256))
"""Steps of more tokens take a GPU longer than even a slow host needs to launch them."""
_BYTES_PER_LAYER = 32 << 10
"""That the driver takes for a recording of a model, twice what was found: on an H200 (driver 580) four recordings of 36
layers took 2 MiB in all (``driver_bytes`` of the GPU report). What does not fit is not recorded."""
_SPARE_BYTES = 128 << 20
"""What a recording leaves free."""


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8 and then every sixteenth to 256, as far as ``max_rows``, which is one itself."""
    sizes = (*_SMALL, *range(_STEP, _MOST_ROWS + 1, _STEP))
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in sizes if size < most), most)


def mixed_row_buckets(max_rows: int) -> tuple[int, ...]:
    """4, 16, 64 and 256, as far as ``max_rows``, which is one itself."""
    most = min(max_rows, _MOST_ROWS)
    return (*(size for size in _MIXED_ROWS if size < most), most)


def token_buckets(max_tokens: int) -> tuple[int, ...]:
    """From 16 to 2,048 in steps of up to a half, as far as ``max_tokens``, which is one itself."""
    most = min(max_tokens, _MIXED_TOKENS[-1])
    return (*(size for size in _MIXED_TOKENS if size < most), most)


def graph_bytes(num_layers: int, max_rows: int, max_tokens: int) -> int:
    """What all recordings of a model's steps may take of a GPU's memory."""
    mixed = len(token_buckets(max_tokens)) * len(mixed_row_buckets(max_rows))
    return (len(row_buckets(max_rows)) + mixed) * num_layers * _BYTES_PER_LAYER


class BucketGraphs:
    """Steps of a GPU, one recording a bucket.

    A bucket's first step is launched op by op, which compiles and loads its kernels; its second is recorded, while the
    server serves. Kernels write into buffers that are given to them, so recordings hold no activations of their own;
    what libraries allocate comes from one pool that all recordings share, and what the driver takes is planned for
    (:func:`graph_bytes`). Should it take more, further buckets are launched op by op.

    Args:
        compute: launches a step of a bucket's size over the step buffers.
        capture: of the device.
        max_rows: of one step.
        max_tokens: of one step.
        max_seq_len: of any sequence.
    """

    def __init__(
        self, compute: Callable[[Bucket], None], capture: Capture, *, max_rows: int, max_tokens: int, max_seq_len: int
    ) -> None:
        self._compute = compute
        self._capture = capture
        self._rows = row_buckets(max_rows)
        self._mixed_rows = mixed_row_buckets(max_rows)
        self._tokens = token_buckets(max_tokens)
        self._max_seq_len = max_seq_len
        self._recordings: dict[Bucket, Work | None] = {}
        """Of buckets seen; None where the next step is to be recorded."""
        self._full = False

    def decodes(self, rows: int) -> Bucket | None:
        """The smallest that holds a step of decodes alone; None where none does."""
        size = _least(self._rows, rows)
        return None if size is None else Bucket(size, size, 1)

    def mixed(self, tokens: int, rows: int) -> Bucket | None:
        """The smallest that holds a step of other rows too; None where none does.

        The tokens that pad it are one row's, of a sequence that is no longer than any may be.
        """
        size = _least(self._tokens, tokens)
        if size is None or size - tokens > self._max_seq_len:
            return None
        most = _least(self._mixed_rows, rows + (size > tokens))
        return None if most is None else Bucket(size, most, size)

    def run(self, bucket: Bucket) -> bool:
        """Launches the padded step that stands in the buffers. Returns whether as one recording."""
        recording = self._recordings.get(bucket)
        if recording is None and bucket in self._recordings and not self._full:
            recording = self._recordings[bucket] = self._capture(lambda: self._compute(bucket))
            if recording is None:
                self._full = True
                _log.warning("no memory for more graphs: steps of other sizes are launched op by op")
        if recording is None:
            self._compute(bucket)
            self._recordings[bucket] = None
            return False
        recording()
        return True


def _least(sizes: Sequence[int], needed: int) -> int | None:
    """The smallest of ascending sizes that will do."""
    return next((size for size in sizes if size >= needed), None)


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
