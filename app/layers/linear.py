"""Linear layers, possibly several of a checkpoint's projections fused into one weight."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from torch import Tensor

from app.kernels.collective import Ranks, all_reduce
from app.kernels.linear import Activation, linear, scratch_width
from app.kernels.types import Act, ActFormat
from app.quant.adapters import AdaptableRows
from app.quant.destination import Destination, Elsewhere, Extent, Part, Scaled
from app.quant.placement import Placement


class Split(enum.Enum):
    """What of a weight [N, K] each rank of a tensor-parallel model has (Shoeybi et al. 2019, arXiv:1909.08053)."""

    OUTPUTS = "outputs"
    """An equal share of every projection's outputs, which stay where they are."""
    INPUTS = "inputs"
    """An equal share of the inputs; the ranks' results are summed, and the first rank has the bias."""


class Linear:
    """``out = x @ weight.T + bias`` for the projections ``parts`` (checkpoint name -> output features), stacked.

    A projection that a checkpoint keeps on its own is a fused layer of one part.

    Args:
        parts: likewise ``in_features``, of the checkpoint: the ranks' number divides what ``split`` shares out.
        activation: with a gated one the parts are a gate and an up projection.
        sums: over ranks that share the inputs; otherwise each has its part of the sum, for the caller.
        scale: factor on the outputs, which weights and bias are multiplied by as they are loaded.
        scales: factors on the outputs of some parts beside that one, likewise.
    """

    def __init__(
        self,
        parts: Mapping[str, int],
        in_features: int,
        *,
        split: Split,
        bias: bool,
        placement: Placement,
        activation: Activation = Activation.NONE,
        sums: bool = True,
        scale: float = 1.0,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self._ranks, self._split = placement.ranks, split
        shares = self._ranks.size
        splits_inputs = split is Split.INPUTS
        self._parts = {name: size if splits_inputs else size // shares for name, size in parts.items()}
        self._has_bias = bias
        self._scales = {name: scale * (scales or {}).get(name, 1.0) for name in parts}
        self._activation = activation
        self._sums = sums and splits_inputs and shares > 1
        self.in_features = in_features // shares if splits_inputs else in_features
        """Input features of this rank."""
        self.out_features = sum(self._parts.values())
        """Output features of this rank, all parts together."""
        self._new = placement.new_weight(
            self.out_features,
            self.in_features,
            bias=bias and (self._ranks.rank == 0 or not splits_inputs),
            gate_up=activation.gated,
        )
        self.weight = self._new.weight
        room = placement.adapters
        self._adapters = None if room is None else room.new_layer(list(self._parts.values()), self.weight)

    @property
    def act_format(self) -> ActFormat:
        """The format in which the layer wants its input."""
        return self.weight.act_format

    def scratch_width(self, out_format: ActFormat) -> int:
        """Elements a token of the scratch that a call with such an ``out`` needs; 0 if none."""
        return scratch_width(self.weight, out_format, self._activation, adapted=self._adapters is not None)

    def __call__(self, x: Act, out: Act, *, scratch: Tensor | None = None, add: bool = False) -> None:
        """``x`` [T, K]; ``out`` [T, N], or [T, N/2] with a gate; ``scratch`` [T, :meth:`scratch_width`].

        Args:
            add: ``out``, a floating one, is added to; of a layer without an activation.
        """
        # One rank's sum has what was there, which all of them hold.
        residual = out.values if add and not (self._sums and self._ranks.rank) else None
        adapters = None if self._adapters is None else self._adapters.of_tokens(x.values.shape[0])
        linear(
            x,
            self.weight,
            out,
            residual=residual,
            activation=self._activation,
            scratch=scratch,
            low_rank=adapters,
        )
        if self._sums:
            all_reduce(out.values, self._ranks)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Where a checkpoint's ``{prefix}.{part}.weight`` and ``.bias`` go: rows of the fused tensors."""
        named: dict[str, Destination] = {}
        start = 0
        for part, size in self._parts.items():
            named[f"{prefix}.{part}.weight"] = self._rows(part, start, size)
            if self._has_bias:
                named[f"{prefix}.{part}.bias"] = self._bias(part, start, size)
            start += size
        return named

    def weights(self) -> dict[str, Destination]:
        """Where each part's weight goes, for checkpoints that keep several in one tensor."""
        sizes = list(self._parts.values())
        return {part: self._rows(part, sum(sizes[:i]), size) for i, (part, size) in enumerate(self._parts.items())}

    def _rows(self, part: str, start: int, size: int) -> Destination:
        rows = self._new.rows(start, start + size)
        if self._adapters is not None:
            rows = AdaptableRows(rows, self._adapters, list(self._parts).index(part))
        rows = self._scaled(part, rows)
        return rank_share(rows, 1 if self._split is Split.INPUTS else 0, self._ranks)

    def _bias(self, part: str, start: int, size: int) -> Destination:
        bias = self._new.bias(start, start + size)
        if bias is None:
            return Elsewhere(size)
        bias = self._scaled(part, bias)
        return bias if self._split is Split.INPUTS else rank_share(bias, 0, self._ranks)

    def _scaled(self, part: str, destination: Destination) -> Destination:
        scale = self._scales[part]
        return destination if scale == 1.0 else Scaled(destination, scale)


def rank_share(destination: Destination, dim: int, ranks: Ranks) -> Destination:
    """Where a checkpoint's whole tensor goes of which this rank keeps its share of a dimension."""
    kept = destination.shape[dim]
    if ranks.size == 1:
        return destination
    return Part(destination, Extent(dim, ranks.rank * kept, (ranks.rank + 1) * kept), ranks.size * kept)
