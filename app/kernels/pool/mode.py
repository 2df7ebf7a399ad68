"""What :func:`app.kernels.pool.pool` makes of a sequence."""

from __future__ import annotations

import enum


class Mode(enum.IntFlag):
    """One of the first three, and whether the vector is scaled to length 1."""

    MEAN = 0
    FIRST = 1
    LAST = 2
    NORMALIZE = 4
