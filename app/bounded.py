"""Python source run in a process of its own, bounded in time and memory.

For files that strangers wrote: native code that reads them may panic, abort, loop or take all memory, and none of that
is an exception that the caller could catch.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_MAX_MESSAGE: Final = 500
"""Characters of an error's message, at most; a file may have put its own text into it, of any length."""
_WALL_CLOCK: Final = 4
"""Bound on the wall clock as a multiple of that on processor time: a busy machine is not the file's fault."""
_FAILED: Final = 1
_MIB: Final = 1 << 20
_SOURCE = """import sys
sys.path[:] = {path!r}
from app.bounded import child
with child({memory}, {seconds}):
{source}"""
# Threads would each reserve memory of their own, on a machine with many cores more than the bound.
_ENVIRONMENT = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class BoundedError(Exception):
    """The source that ran in the process failed, or the process died; the message is one line."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a process may take."""

    memory: int = 2 << 30
    """Bytes of private memory; the largest tokenizers in use take less than half of it. Not enforced on macOS."""
    seconds: int = 60
    """Seconds of processor time; the largest tokenizers in use take a tenth of it."""


def run_bounded(source: str, *arguments: str, bounds: Bounds | None = None) -> None:
    """Runs Python source to its end; ``sys.argv[1:]`` are the arguments, modules are found where this process does.

    Raises:
        BoundedError: the source raised an exception, or the process died or reached a bound.
    """
    bounds = bounds or Bounds()
    code = _SOURCE.format(
        path=[entry for entry in sys.path if entry],
        memory=bounds.memory,
        seconds=bounds.seconds,
        source=textwrap.indent(source, "    "),
    )
    try:
        done = subprocess.run(
            # -u: what is left in a buffer would come out behind the reason.
            [sys.executable, "-P", "-u", "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # panics print themselves, at a length that the file chooses
            encoding="utf-8",
            errors="replace",
            check=False,
            env=os.environ | _ENVIRONMENT,
            timeout=_WALL_CLOCK * bounds.seconds,
        )
    except subprocess.TimeoutExpired:
        raise BoundedError(f"takes more than {_WALL_CLOCK * bounds.seconds} s") from None
    if done.returncode == -signal.SIGXCPU:
        raise BoundedError(f"takes more than {bounds.seconds} s of processor time")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise BoundedError(f"crashes ({name}), perhaps for want of more than {bounds.memory // _MIB} MiB of memory")
    if done.returncode:
        lines = done.stdout.splitlines()
        raise BoundedError(lines[-1] if lines else f"ended with exit code {done.returncode}")


@contextmanager
def child(memory: int, seconds: int) -> Iterator[None]:
    """The process's side: sets its bounds, and ends it with one line on stdout if the body raises anything."""
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, memory)):
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, hard))
    try:
        yield
    except MemoryError:
        _end(f"takes more than {memory // _MIB} MiB of memory")
    except BaseException as error:  # noqa: BLE001 - a panic of native code is no Exception
        _end(_line(error))


def _line(error: BaseException) -> str:
    text = " ".join(str(error)[: 2 * _MAX_MESSAGE].split())[:_MAX_MESSAGE]
    # Errors of this program's own say what is the matter; others' messages often make no sense without their type.
    own = isinstance(error, SystemExit) or type(error).__module__.startswith("app.")
    return text if own else f"{type(error).__name__}: {text}"


def _end(line: str) -> None:
    sys.stdout.buffer.write(f"\n{line}\n".encode(errors="replace"))
    sys.stdout.flush()
    os._exit(_FAILED)  # at once: tearing down what is left may be what crashes
