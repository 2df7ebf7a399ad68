"""How an expert's two first products become one."""

from __future__ import annotations

from typing import NamedTuple


class Gate(NamedTuple):
    """Of a gate g and an up projection u ``activation(g) * u``, or, with a limit,
    ``(min(max(u, -limit), limit) + 1) * m * sigmoid(alpha * m)`` where ``m = min(g, limit)``.

    A NaN stays one.
    """

    alpha: float = 1.0
    """Read with a limit alone."""
    limit: float | None = None
    """More than 0."""
    activation: str = "silu"
    """``silu`` or ``gelu_tanh``; read without a limit alone."""


SILU = Gate()
GELU_TANH = Gate(activation="gelu_tanh")
