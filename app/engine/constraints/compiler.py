"""Threads that compile grammars, and the grammars that they keep."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from app.contract.frames import EngineError
from app.engine.constraints.base import CompiledGrammar, ConstraintError, GrammarCompiler
from app.engine.constraints.threads import start_thread

MAX_SOURCE = 1 << 19
"""Characters of a grammar, at most."""
MAX_PENDING = 256
"""Different grammars that may wait to be compiled."""
MAX_SECONDS = 10.0
"""Seconds that compiling may take; then its requests are answered without it."""
CACHE_BYTES = 64 << 20
"""Memory of the grammars that are kept, about."""
_NICE = 10
_THREADS = 2
_MOST_THREADS = 6
"""Threads, those included that still compile what nobody waits for any more."""

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a grammar."""

    source: str
    grammar: CompiledGrammar | None
    error: EngineError | None
    seconds: float = 0.0
    """Seconds that compiling it took; 0 where it was there already."""


class GrammarCache:
    """Compiled grammars by their text; the least recently used go first. Safe to use from several threads."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._grammars: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def get(self, source: str) -> CompiledGrammar | None:
        """The compiled grammar, if it is still there."""
        with self._lock:
            grammar = self._grammars.get(source)
            if grammar is not None and grammar.is_spent:
                self._nbytes -= self._grammars.pop(source).nbytes
                return None
            if grammar is not None:
                self._grammars.move_to_end(source)
            return grammar

    def put(self, source: str, grammar: CompiledGrammar) -> None:
        """Keeps a grammar, and drops others for it."""
        with self._lock:
            if source in self._grammars or grammar.nbytes > self._max_bytes:
                return
            self._grammars[source] = grammar
            self._nbytes += grammar.nbytes
            while self._nbytes > self._max_bytes:
                _, dropped = self._grammars.popitem(last=False)
                self._nbytes -= dropped.nbytes


class Compiler:
    """Compiles grammars beside the engine's thread, which alone calls its methods. Equal grammars are compiled once.

    Args:
        make: makes what compiles, in a thread, when the first grammar comes.
        on_compiled: called from a thread when :meth:`take` has something new.
    """

    def __init__(self, make: Callable[[], GrammarCompiler], on_compiled: Callable[[], None]) -> None:
        self._pending: dict[str, _Job] = {}
        self._shop = _Shop(make, on_compiled)
        self._num_threads = 0
        weakref.finalize(self, self._shop.close)

    @property
    def has_outcomes(self) -> bool:
        """Whether :meth:`take` has something new."""
        return bool(self._shop.outcomes)

    def submit(self, source: str) -> EngineError | None:
        """Has a grammar compiled, unless it is under way; :meth:`take` tells of it. Returns why not, if not."""
        if source in self._pending:
            return None
        if len(source) > MAX_SOURCE:
            return EngineError("invalid_constraint", f"a grammar of {len(source)} characters exceeds {MAX_SOURCE}")
        if len(self._pending) >= MAX_PENDING:
            return EngineError("overloaded", "too many grammars wait to be compiled")
        while self._num_threads < _THREADS:
            self._start_thread()
        job = self._pending[source] = _Job(source)
        self._shop.jobs.put(job)
        return None

    def take(self) -> list[Outcome]:
        """What became of grammars since the last call; those included that took too long."""
        outcomes = []
        while self._shop.outcomes:
            job, outcome = self._shop.outcomes.popleft()
            if self._pending.pop(outcome.source, None) is None:
                continue
            outcomes.append(outcome)
        now = time.monotonic()
        for source, job in list(self._pending.items()):
            if job.started is not None and now - job.started > MAX_SECONDS:
                del self._pending[source]
                if self._num_threads < _MOST_THREADS:
                    self._start_thread()  # in place of the one that is at it still
                message = f"the grammar takes more than {MAX_SECONDS:g} s to compile"
                outcomes.append(Outcome(source, None, EngineError("invalid_constraint", message)))
        return outcomes

    def _start_thread(self) -> None:
        self._num_threads += 1
        start_thread("grammars", self._shop.work)


class _Job:
    """A grammar to compile."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.started: float | None = None


class _Shop:
    """What the threads share. It does not know the :class:`Compiler`, so that they do not keep it alive."""

    def __init__(self, make: Callable[[], GrammarCompiler], on_compiled: Callable[[], None]) -> None:
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.outcomes: deque[tuple[_Job, Outcome]] = deque()
        self._make, self._on_compiled = make, on_compiled
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()
        self._cache = GrammarCache()

    def close(self) -> None:
        """Lets all threads end."""
        for _ in range(_MOST_THREADS):
            self.jobs.put(None)

    def work(self) -> None:
        """A thread's life, spent behind the kernels': they are what everybody waits for."""
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (job := self.jobs.get()) is not None:
            outcome = self._compile(job)
            self.outcomes.append((job, outcome))
            self._on_compiled()

    def _compile(self, job: _Job) -> Outcome:
        source = job.source
        grammar = self._cache.get(source)
        if grammar is not None:
            return Outcome(source, grammar, None)
        try:
            compiler = self._prepared()
            job.started = time.monotonic()
            grammar = compiler.compile(source)
            self._cache.put(source, grammar)
        except ConstraintError as error:
            return Outcome(source, None, EngineError("invalid_constraint", str(error)))
        except BaseException:  # noqa: BLE001 - llguidance's panics are no Exceptions
            _log.exception("a grammar could not be compiled")
            return Outcome(source, None, EngineError("engine_error", "the grammar could not be compiled"))
        return Outcome(source, grammar, None, time.monotonic() - job.started)

    def _prepared(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                self._compiler = self._make()
            return self._compiler
