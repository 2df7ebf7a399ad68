"""Activations: what a linear layer does to its outputs.

On a GPU also an op of its own behind a library's matrix product, which ``linear`` starts.
"""

from __future__ import annotations

import enum

__all__ = ["Activation"]


class Activation(enum.Enum):
    """What a linear layer does to its result y, in fp32."""

    NONE = "none"
    SILU_MUL = "silu_mul"
    """``silu(gate) * up``, where the weight stacks gate above up."""
    GELU_TANH_MUL = "gelu_tanh_mul"
    """``gelu_tanh(gate) * up``, where the weight stacks gate above up."""
    GELU = "gelu"
    """``y / 2 * (1 + erf(y / sqrt(2)))``."""
    GELU_TANH = "gelu_tanh"
    """``y / 2 * (1 + tanh(sqrt(2 / pi) * (y + 0.044715 * y ** 3)))``."""
    RELU2 = "relu2"
    """``max(y, 0) ** 2``."""

    @property
    def gated(self) -> bool:
        """Whether the outputs are a gate's and an up projection's, which become half as many."""
        return self.value.endswith("_mul")

    @property
    def function(self) -> str:
        """Name of what is applied to the outputs, or to the gate's: ``none``, ``silu``, ``gelu``, ``gelu_tanh`` or
        ``relu2``."""
        return self.value.removesuffix("_mul")
