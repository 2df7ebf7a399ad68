"""Ends a process whose parent is gone. Imports nothing heavy: a process calls it before it imports the rest."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it ends, as it does with its process.

    That reaches a process that hangs, or is stopped, and so reads no end of any connection. Only on Linux, and only
    where the kernel allows it; elsewhere the end of the connection to the parent has to do.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended meanwhile; one that ended earlier has closed the connection
        os._exit(1)
