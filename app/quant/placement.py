"""Where a model's tensors live and in which format, decided once when it is built."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from app.kernels.collective import ONE_RANK, Ranks
from app.kernels.types import ActFormat, ExpertsWeight, LinearWeight, PackedExperts, PackedWeight, SplitKWorkspace
from app.quant.destination import Destination
from app.quant.packed import NewPackedExperts, NewPackedWeight
from app.quant.plain import Int8Experts, Int8Weight, PlainExperts, PlainWeight


class WeightFormat(enum.Enum):
    """How the weights of linear layers are kept."""

    PLAIN = "plain"
    """As tensors of the model's dtype."""
    INT8 = "int8"
    """As int8 tensors with a scale for each output; activations int8, with a scale a group."""
    W8A8 = "int8 w8a8"
    """Likewise with a scale a token, for GPUs; embedding and head stay whole, as few bytes are in them there."""
    W8A16 = "int8 w8a16"
    """Likewise with floating activations."""
    PACKED_BF16 = "packed bfloat16"
    PACKED_INT8 = "packed int8"
    """In the layout of the native kernels."""


_INT8_INPUTS = {
    WeightFormat.INT8: ActFormat.INT8,
    WeightFormat.PACKED_INT8: ActFormat.INT8,
    WeightFormat.W8A8: ActFormat.INT8_TOKEN,
    WeightFormat.W8A16: ActFormat.FLOAT,
}
_FLOATING = {WeightFormat.PACKED_INT8: WeightFormat.PACKED_BF16, WeightFormat.PACKED_BF16: WeightFormat.PACKED_BF16}
_FLOATING_HEADS = (WeightFormat.PLAIN, WeightFormat.W8A8, WeightFormat.W8A16)


class NewWeight(Protocol):
    """A linear layer's weight, to be filled."""

    @property
    def weight(self) -> LinearWeight | PackedWeight:
        """What the kernel reads."""

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of [N, K] go."""

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes; None without one."""


class NewExperts(Protocol):
    """The weights of a layer's experts, each a gated MLP of width I in a model of width D, to be filled."""

    @property
    def weight(self) -> ExpertsWeight | PackedExperts:
        """What the kernel reads."""

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's [2I, D] go, the gate's I rows before those of up."""

    def down(self, expert: int) -> Destination:
        """Where an expert's [D, I] goes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Handed down a model's constructors."""

    dtype: torch.dtype
    """Of activations and norms."""
    device: torch.device
    format: WeightFormat = WeightFormat.PLAIN
    workspace: SplitKWorkspace | None = None
    """Of the model that is being built."""
    ranks: Ranks = ONE_RANK
    """That share the model; this process holds the share of one."""

    def for_model(self) -> Placement:
        """For the constructor of a model to hand on: with the memory that its layers share."""
        if self.format not in (WeightFormat.W8A8, WeightFormat.W8A16):
            return self
        return replace(self, workspace=SplitKWorkspace.new(self.device))

    def floating(self) -> Placement:
        """For layers that stay floating whatever the format is; their inputs are of :attr:`table_dtype`."""
        return replace(self, format=_FLOATING.get(self.format, WeightFormat.PLAIN))

    @property
    def packed(self) -> bool:
        """Whether weights are in the layout of the native kernels."""
        return self.format in (WeightFormat.PACKED_BF16, WeightFormat.PACKED_INT8)

    @property
    def table_dtype(self) -> torch.dtype:
        """Of what is floating in every format: the token embedding, which a native kernel widens as it looks up."""
        return torch.bfloat16 if self.packed else self.dtype

    @property
    def head_shares_table(self) -> bool:
        """Whether an output head tied to the embedding can read its very table."""
        return self.format in _FLOATING_HEADS

    def new_head(self, vocab_size: int, width: int) -> NewWeight:
        """An uninitialised weight [vocab_size, width] of an output head."""
        if self.format in _FLOATING_HEADS:
            return PlainWeight(vocab_size, width, bias=False, dtype=self.dtype, device=self.device)
        return self.new_weight(vocab_size, width, bias=False)

    def new_weight(self, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        """An uninitialised weight [n, k] of a linear layer.

        Args:
            gate_up: the first n / 2 rows are a gate's, the others those of the up projection it is multiplied with.
        """
        # On the meta device only the size counts, which is that of plain tensors but for some padding.
        if self.packed and self.device.type != "meta":
            dtype = torch.int8 if self.format is WeightFormat.PACKED_INT8 else torch.bfloat16
            return NewPackedWeight(n, k, dtype=dtype, bias=bias, gate_up=gate_up)
        int8_input = _INT8_INPUTS.get(self.format)
        if int8_input is not None:
            return Int8Weight(n, k, bias=bias, device=self.device, int8_input=int8_input, workspace=self.workspace)
        dtype = torch.bfloat16 if self.packed else self.dtype
        return PlainWeight(n, k, bias=bias, dtype=dtype, device=self.device)

    def new_experts(self, count: int, inner: int, width: int) -> NewExperts:
        """Uninitialised weights of ``count`` experts, gated MLPs of width ``inner`` in a model of ``width``."""
        if self.packed and self.device.type != "meta":
            dtype = torch.int8 if self.format is WeightFormat.PACKED_INT8 else torch.bfloat16
            return NewPackedExperts(count, inner, width, dtype=dtype)
        int8_input = _INT8_INPUTS.get(self.format)
        if int8_input is not None:
            return Int8Experts(count, inner, width, device=self.device, int8_input=int8_input)
        dtype = torch.bfloat16 if self.packed else self.dtype
        return PlainExperts(count, inner, width, dtype=dtype, device=self.device)
