"""Where a model's tensors live and in which format, decided once when it is built."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch

from app.kernels.types import LinearWeight, PackedWeight
from app.quant.destination import Destination
from app.quant.packed import NewPackedWeight
from app.quant.plain import Int8Weight, PlainWeight


class WeightFormat(enum.Enum):
    """How the weights of linear layers are kept."""

    PLAIN = "plain"
    """As tensors of the model's dtype."""
    INT8 = "int8"
    """As int8 tensors with a scale for each output."""
    PACKED_BF16 = "packed bfloat16"
    PACKED_INT8 = "packed int8"
    """In the layout of the native kernels."""


class NewWeight(Protocol):
    """A linear layer's weight, to be filled."""

    @property
    def weight(self) -> LinearWeight | PackedWeight:
        """What the kernel reads."""

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of [N, K] go."""

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes; None without one."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Handed down a model's constructors."""

    dtype: torch.dtype
    """Of activations and norms."""
    device: torch.device
    format: WeightFormat = WeightFormat.PLAIN

    @property
    def packed(self) -> bool:
        """Whether weights are in the layout of the native kernels."""
        return self.format in (WeightFormat.PACKED_BF16, WeightFormat.PACKED_INT8)

    @property
    def table_dtype(self) -> torch.dtype:
        """Of the token embedding; the native kernel widens bf16 as it looks up."""
        return torch.bfloat16 if self.packed else self.dtype

    @property
    def head_shares_table(self) -> bool:
        """Whether an output head tied to the embedding can read its very table."""
        return self.format is WeightFormat.PLAIN

    def new_weight(self, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        """An uninitialised weight [n, k] of a linear layer.

        Args:
            gate_up: the first n / 2 rows are a gate's, the others those of the up projection it is multiplied with.
        """
        # On the meta device only the size counts, which is that of plain tensors but for some padding.
        if self.packed and self.device.type != "meta":
            dtype = torch.int8 if self.format is WeightFormat.PACKED_INT8 else torch.bfloat16
            return NewPackedWeight(n, k, dtype=dtype, bias=bias, gate_up=gate_up)
        if self.format in (WeightFormat.INT8, WeightFormat.PACKED_INT8):
            return Int8Weight(n, k, bias=bias, device=self.device)
        dtype = torch.bfloat16 if self.packed else self.dtype
        return PlainWeight(n, k, bias=bias, dtype=dtype, device=self.device)
