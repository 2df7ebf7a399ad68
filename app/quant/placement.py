"""Where a model's tensors live and in which format, decided once when it is built."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch

from app.kernels.types import LinearWeight
from app.quant.destination import Destination
from app.quant.plain import Int8Weight, PlainWeight


class WeightFormat(enum.Enum):
    """How the weights of linear layers are kept."""

    PLAIN = "plain"
    """As tensors of the model's dtype."""
    INT8 = "int8"
    """As int8 tensors with a scale for each output."""


class NewWeight(Protocol):
    """A linear layer's weight, to be filled."""

    @property
    def weight(self) -> LinearWeight:
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
    def table_dtype(self) -> torch.dtype:
        """Of the token embedding."""
        return self.dtype

    @property
    def head_shares_table(self) -> bool:
        """Whether an output head tied to the embedding can read its very table."""
        return self.format is WeightFormat.PLAIN

    def new_weight(self, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        """An uninitialised weight [n, k] of a linear layer.

        Args:
            gate_up: the first n / 2 rows are a gate's, the others those of the up projection it is multiplied with.
        """
        del gate_up  # plain tensors have them as they come
        if self.format is WeightFormat.INT8:
            return Int8Weight(n, k, bias=bias, device=self.device)
        return PlainWeight(n, k, bias=bias, dtype=self.dtype, device=self.device)
