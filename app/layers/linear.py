"""Linear layers, possibly several of a checkpoint's projections fused into one weight."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from app.kernels.linear import Activation, linear, scratch_width
from app.kernels.types import Act, ActFormat
from app.quant.destination import Destination
from app.quant.placement import Placement


class Linear:
    """``out = x @ weight.T + bias`` for the projections ``parts`` (checkpoint name -> output features), stacked.

    A projection that a checkpoint keeps on its own is a fused layer of one part.

    Args:
        activation: with ``SILU_MUL`` the parts are a gate and an up projection.
    """

    def __init__(
        self,
        parts: Mapping[str, int],
        in_features: int,
        *,
        bias: bool,
        placement: Placement,
        activation: Activation = Activation.NONE,
    ) -> None:
        self._parts = dict(parts)
        self._activation = activation
        self.out_features = sum(self._parts.values())
        gate_up = activation is Activation.SILU_MUL
        self._new = placement.new_weight(self.out_features, in_features, bias=bias, gate_up=gate_up)
        self.weight = self._new.weight

    @property
    def act_format(self) -> ActFormat:
        """The format in which the layer wants its input."""
        return self.weight.act_format

    def scratch_width(self, out_format: ActFormat) -> int:
        """Elements a token of the scratch that a call with such an ``out`` needs; 0 if none."""
        return scratch_width(self.weight, out_format, self._activation)

    def __call__(self, x: Act, out: Act, *, scratch: Tensor | None = None) -> None:
        """``x`` [T, K]; ``out`` [T, N], or [T, N/2] with ``SILU_MUL``; ``scratch`` [T, :meth:`scratch_width`]."""
        linear(x, self.weight, out, activation=self._activation, scratch=scratch)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Where a checkpoint's ``{prefix}.{part}.weight`` and ``.bias`` go: rows of the fused tensors."""
        named: dict[str, Destination] = {}
        start = 0
        for part, size in self._parts.items():
            named[f"{prefix}.{part}.weight"] = self._new.rows(start, start + size)
            bias = self._new.bias(start, start + size)
            if bias is not None:
                named[f"{prefix}.{part}.bias"] = bias
            start += size
        return named
