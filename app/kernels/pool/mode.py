"""How :func:`app.kernels.pool.pool` makes one vector of a sequence."""

from __future__ import annotations

import enum


class Mode(enum.IntFlag):
    """One of the first three, and perhaps ``NORMALIZE``."""

    MEAN = 0
    """The mean of all tokens' hidden states."""
    FIRST = 1
    """The first token's hidden state."""
    LAST = 2
    """The last token's hidden state."""
    NORMALIZE = 4
    """The vector is scaled to length 1."""
