"""Where a model's tensors live and in which format, decided once when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from app.kernels.collective import ONE_RANK, Ranks
from app.kernels.types import SplitKWorkspace
from app.quant.adapters import AdapterLimits, AdapterRoom
from app.quant.experts import ExpertsBias
from app.quant.formats import WeightFormat
from app.quant.formats.base import NewExperts, NewTable, NewWeight, Storage

__all__ = ["NewExperts", "NewWeight", "Placement", "WeightFormat"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Handed down a model's constructors."""

    dtype: torch.dtype
    """Dtype of activations and norms."""
    device: torch.device
    format: WeightFormat = WeightFormat.PLAIN
    workspace: SplitKWorkspace | None = None
    """Workspace of the model that is being built."""
    ranks: Ranks = ONE_RANK
    """That share the model; this process holds the share of one."""
    adapter_limits: AdapterLimits | None = None
    """What the model's linear layers have room for; None: no adapters are served."""
    adapters: AdapterRoom | None = None
    """That room, of the model that is being built."""
    block_types: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name of a checkpoint's tensor -> type of the blocks that it is stored in, where :attr:`keeps_blocks`."""

    @property
    def _storage(self) -> Storage:
        return self.format.storage

    def for_model(self) -> Placement:
        """For the constructor of a model to hand on: with the memory that its layers share."""
        placed = replace(self, workspace=SplitKWorkspace.new(self.device)) if self._storage.split_k else self
        if self.adapter_limits is None:
            return placed
        room = AdapterRoom(self.adapter_limits, self.table_dtype, self.device)
        return replace(placed, adapters=room)

    def floating(self) -> Placement:
        """For layers that stay floating whatever the format is; their inputs are of :attr:`table_dtype`."""
        return replace(self, format=self._storage.floating)

    @property
    def keeps_blocks(self) -> bool:
        """Whether weights are kept in the blocks of their file."""
        return self._storage.keeps_blocks

    @property
    def converts_to(self) -> str:
        """Name, for people, of what becomes of weights that are not kept as they are stored."""
        return self._storage.converts_to or self.format.label

    @property
    def packed(self) -> bool:
        """Whether weights are in the layout of the native kernels."""
        return self._storage.packed_dtype is not None

    @property
    def table_dtype(self) -> torch.dtype:
        """Dtype of what is floating in every format: the token embedding, which a kernel widens as it looks up."""
        return self._storage.table_dtype(self.dtype)

    @property
    def head_shares_table(self) -> bool:
        """Whether an output head tied to the embedding can read its very table."""
        return self._storage.head_shares_table

    def new_head(self, vocab_size: int, width: int) -> NewWeight:
        """An uninitialised weight [vocab_size, width] of an output head."""
        return self._storage.new_head(self, vocab_size, width)

    def new_table(self, vocab_size: int, width: int) -> NewTable | None:
        """An uninitialised table [vocab_size, width] of token embeddings, which is the weight of a head tied to it too;
        None: a tensor of :attr:`table_dtype` serves."""
        return self._storage.new_table(self, vocab_size, width)

    def new_weight(self, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        """An uninitialised weight [n, k] of a linear layer.

        Args:
            gate_up: the first n / 2 rows are a gate's, the others those of the up projection it is multiplied with.
        """
        return self._storage.new_weight(self, n, k, bias=bias, gate_up=gate_up)

    def new_experts(self, count: int, inner: int, width: int, *, bias: bool = False) -> NewExperts:
        """Uninitialised weights of ``count`` experts, gated MLPs of width ``inner`` in a model of ``width``.

        Args:
            bias: both products have one; of ranks that share experts, the first has that of the second product.
        """
        biases = ExpertsBias(gate_up=bias, down=bias and self.ranks.rank == 0)
        return self._storage.new_experts(self, count, inner, width, bias=biases)
