"""What a weight format answers, and what the weights that it makes answer.

N output features, K input features of a linear layer; D model width, I width of an expert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from app.kernels.backend import Backend
from app.kernels.types import ActFormat, BlockWeight, ExpertsWeight, PackedExperts, SplitKWorkspace, Weight
from app.quant.destination import Destination
from app.quant.experts import ExpertsBias
from app.quant.formats import WeightFormat


class NewWeight(Protocol):
    """A linear layer's weight, to be filled."""

    @property
    def weight(self) -> Weight:
        """What the kernel reads."""

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of [N, K] go."""

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes; None without one."""


class NewTable(Protocol):
    """A table of token embeddings that is a weight in blocks, to be filled."""

    @property
    def weight(self) -> BlockWeight:
        """What embeddings are looked up in."""

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of [V, D] go."""


class NewExperts(Protocol):
    """The weights of a layer's experts, each a gated MLP of width I in a model of width D, to be filled."""

    @property
    def weight(self) -> ExpertsWeight | PackedExperts:
        """What the kernel reads."""

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's [2I, D] go, the gate's I rows before those of up."""

    def down(self, expert: int) -> Destination:
        """Where an expert's [D, I] goes."""

    def gate_up_bias(self, expert: int, start: int, stop: int) -> Destination | None:
        """Where the bias of those rows goes; None without one."""

    def down_bias(self, expert: int) -> Destination | None:
        """Where the bias of an expert's [D, I] goes; None without one."""


class Site(Protocol):
    """What a format is told of the model whose weights it makes: see :class:`app.quant.placement.Placement`."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations and norms."""

    @property
    def device(self) -> torch.device:
        """Device of the weights. On the meta device weights have shapes alone, by which memory is planned."""

    @property
    def workspace(self) -> SplitKWorkspace | None:
        """Workspace that the model's linear layers share, if the format wants one."""


@dataclass(frozen=True, kw_only=True)
class Storage(ABC):
    """One format: how weights are stored, and what goes with them."""

    act_format: ActFormat
    """The format in which linear layers of such a weight want their input."""
    packed_dtype: torch.dtype | None = None
    """Dtype of weights in the layout of the native kernels; None: weights are plain tensors."""
    pages: str | None = None
    """Dtype of the KV cache's pages where the settings leave it open; None: that of activations."""
    split_k: bool = False
    """Products may split K over programs, which meet in a workspace of the model."""
    head_shares_table: bool = False
    """An output head tied to the embedding reads its very table, which is floating."""
    keeps_blocks: bool = False
    """Weights are in the blocks of their file, whose types have to be known before there is memory for them."""
    converts_to: str | None = None
    """Name, for people, of what becomes of weights that are not kept as they are stored; None: the format's label."""
    floating: WeightFormat = WeightFormat.PLAIN
    """The format of layers that stay floating in a model of this one."""

    @abstractmethod
    def suits(self, dtype: torch.dtype, backend: Backend, takes: Callable[[torch.dtype], bool]) -> bool:
        """Whether the backend computes a model of such weights, and no format of plain tensors need stand in.

        Args:
            dtype: of activations.
            takes: tells whether the backend packs all of the model's weights in a dtype.
        """

    @abstractmethod
    def new_weight(self, site: Site, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        """See :meth:`app.quant.placement.Placement.new_weight`."""

    @abstractmethod
    def new_experts(self, site: Site, count: int, inner: int, width: int, *, bias: ExpertsBias) -> NewExperts:
        """See :meth:`app.quant.placement.Placement.new_experts`."""

    def new_head(self, site: Site, vocab_size: int, width: int) -> NewWeight:
        """See :meth:`app.quant.placement.Placement.new_head`; by default as of any linear layer."""
        return self.new_weight(site, vocab_size, width, bias=False)

    def new_table(self, site: Site, vocab_size: int, width: int) -> NewTable | None:  # noqa: ARG002
        """See :meth:`app.quant.placement.Placement.new_table`; by default there is none."""
        return None

    def table_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See :attr:`app.quant.placement.Placement.table_dtype`.

        Args:
            dtype: of activations.
        """
        return dtype
