"""Linear layers, possibly several of a checkpoint's projections fused into one weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.kernels.linear import Activation, linear
from app.kernels.types import Act, ActFormat, LinearWeight


class Linear:
    """``out = x @ weight.T + bias`` for the projections ``parts`` (checkpoint name -> output features), stacked.

    A projection that a checkpoint keeps on its own is a fused layer of one part.
    """

    def __init__(
        self, parts: Mapping[str, int], in_features: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._parts = dict(parts)
        self.out_features = sum(self._parts.values())
        self.weight = LinearWeight(
            values=torch.empty(self.out_features, in_features, dtype=dtype, device=device),
            bias=torch.empty(self.out_features, dtype=dtype, device=device) if bias else None,
        )

    @property
    def act_format(self) -> ActFormat:
        """The format in which the layer wants its input."""
        return self.weight.act_format

    def __call__(self, x: Act, out: Act, *, activation: Activation = Activation.NONE) -> None:
        """``x`` [T, K]; ``out`` [T, N], or [T, N/2] with ``SILU_MUL``."""
        linear(x, self.weight, out, activation=activation)

    def destinations(self, prefix: str) -> dict[str, Tensor]:
        """Where a checkpoint's ``{prefix}.{part}.weight`` and ``.bias`` go: rows of the fused tensors."""
        named: dict[str, Tensor] = {}
        start = 0
        for part, size in self._parts.items():
            named[f"{prefix}.{part}.weight"] = self.weight.values[start : start + size]
            if self.weight.bias is not None:
                named[f"{prefix}.{part}.bias"] = self.weight.bias[start : start + size]
            start += size
        return named
