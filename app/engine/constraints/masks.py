"""Masks of a step's constrained rows, made when the step wants to sample, or in a thread while its forward pass runs.

A thread is worth it for masks that take long: it needs a core that the kernels have, and to wake it up costs more than
most masks do.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.contract.step import ScheduledRow
from app.engine.constraints.base import ConstraintError, TokenConstraint
from app.engine.constraints.threads import start_thread
from app.engine.request import Request

_SLOW_SECONDS = 1e-3
"""Seconds of a step's masks from which on the next step's are made in the thread."""

_log = logging.getLogger(__name__)


class MaskJob(NamedTuple):
    """A sample whose mask is wanted."""

    slot: int
    constraint: TokenConstraint
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the request besides EOS, in ascending order: they may come where the grammar may end."""
    barred: Sequence[int] = ()
    """Tokens that may not come yet, unless nothing else can: the request's ``min_tokens`` are not reached."""


class StepMasks:
    """Masks that are being made, or will be when they are waited for; see :class:`app.contract.step.TokenMasks`."""

    def __init__(self, jobs: Sequence[MaskJob], num_words: int) -> None:
        self.slots = [job.slot for job in jobs]
        self.seconds = 0.0
        """Seconds that it took to make them, once they are there."""
        self._jobs = jobs
        self._words = np.empty((len(jobs), num_words), dtype=np.uint32)
        self._is_made = False
        self._made_elsewhere: threading.Event | None = None

    @property
    def made_meanwhile(self) -> bool:
        """See :class:`app.contract.step.TokenMasks`."""
        return self._made_elsewhere is not None

    def make_in(self, thread: queue.SimpleQueue[StepMasks | None]) -> None:
        """Has them made by the thread that serves the queue."""
        self._made_elsewhere = threading.Event()
        thread.put(self)

    def make(self) -> None:
        """Makes the masks. One that cannot be made stays zero: its row, and no other, fails."""
        started = time.perf_counter()
        try:
            for job, words in zip(self._jobs, self._words, strict=True):
                try:
                    _fill(job, words)
                except ConstraintError:  # the constraint says so again when it is asked next
                    words[:] = 0
                except BaseException:  # noqa: BLE001 - a bug, or a panic of llguidance's, that one row meets is that row's error
                    _log.exception("no mask for slot %d", job.slot)
                    words[:] = 0
        finally:
            self.seconds = time.perf_counter() - started
            self._is_made, self._jobs = True, ()
            if self._made_elsewhere is not None:
                self._made_elsewhere.set()

    def wait(self) -> NDArray[np.uint32]:
        """See :meth:`app.contract.step.TokenMasks.wait`."""
        if self._made_elsewhere is not None:
            self._made_elsewhere.wait()
        elif not self._is_made:
            self.make()
        return self._words


class MaskMaker:
    """Says where a step's masks are made; has a thread, started with the first step after slow ones."""

    def __init__(self, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._num_words = -(-vocab_size // 32)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._queue: queue.SimpleQueue[StepMasks | None] | None = None
        self._last: StepMasks | None = None

    def begin(self, rows: Sequence[tuple[Request, ScheduledRow]]) -> StepMasks:
        """The masks of a step's rows. Nobody else may use their constraints until they have been waited for.

        Args:
            rows: request and row of each; the requests have constraints, the rows samples.
        """
        jobs = [self._job(request, row.slot, nth) for request, row in rows for nth in range(row.num_samples)]
        masks = StepMasks(jobs, self._num_words)
        if self._last is not None and self._last.seconds > _SLOW_SECONDS:
            masks.make_in(self._thread())
        self._last = masks
        return masks

    def _thread(self) -> queue.SimpleQueue[StepMasks | None]:
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            start_thread("masks", _serve, self._queue)
            weakref.finalize(self, self._queue.put, None)
        return self._queue

    def _job(self, request: Request, slot: int, nth: int) -> MaskJob:
        """The mask of a row's ``nth`` sample, which stands behind as many drafts."""
        constraint = request.constraint if nth == 0 else request.constraints_ahead[nth - 1]
        if constraint is None:
            raise RuntimeError(f"request {request.request_id} has no grammar")
        others = [token_id for token_id in request.stop_token_ids if token_id not in self._eos_token_ids]
        early = request.num_output_tokens + nth < request.sampling.min_tokens
        return MaskJob(slot, constraint, sorted(others), sorted(request.stop_token_ids) if early else ())


def _serve(jobs: queue.SimpleQueue[StepMasks | None]) -> None:
    while (masks := jobs.get()) is not None:
        masks.make()
        del masks  # an engine that has ended is not kept by its last step


def _fill(job: MaskJob, words: NDArray[np.uint32]) -> None:
    job.constraint.fill(words)
    if job.stop_token_ids:
        _set(words, job.stop_token_ids, allowed=job.constraint.may_end)
    if job.barred:
        before = words.copy()
        _set(words, job.barred, allowed=False)
        if not words.any():
            words[:] = before


def _set(words: NDArray[np.uint32], token_ids: Sequence[int], *, allowed: bool) -> None:
    for token_id in token_ids:
        bit = np.uint32(1 << token_id % 32)
        if allowed:
            words[token_id // 32] |= bit
        else:
            words[token_id // 32] &= ~bit
