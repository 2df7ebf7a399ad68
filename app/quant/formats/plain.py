"""Floating weights as plain tensors [N, K]: what ``reference.py`` and the GPU's kernels read.

N output features, K input features; X experts of width I in a model of width D.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.kernels.backend import Backend
from app.kernels.types import ActFormat, ExpertsWeight, LinearWeight
from app.quant.destination import Destination
from app.quant.experts import ExpertsBias
from app.quant.formats.base import NewExperts, NewWeight, Site, Storage


class PlainWeight:
    """Floating weights and bias of one dtype."""

    def __init__(self, n: int, k: int, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = LinearWeight(
            values=torch.empty(n, k, dtype=dtype, device=device),
            bias=torch.empty(n, dtype=dtype, device=device) if bias else None,
        )

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of the weight go."""
        return self.weight.values[start:stop]

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes, if there is one."""
        return None if self.weight.bias is None else self.weight.bias[start:stop]


class PlainBiases:
    """Biases of experts as plain tensors."""

    weight: ExpertsWeight

    def gate_up_bias(self, expert: int, start: int, stop: int) -> Destination | None:
        """Where the bias of rows ``start`` to ``stop`` of a gate and up projection goes, if there is one."""
        return None if self.weight.gate_up_bias is None else self.weight.gate_up_bias[expert, start:stop]

    def down_bias(self, expert: int) -> Destination | None:
        """Where the bias of a down projection goes, if there is one."""
        return None if self.weight.down_bias is None else self.weight.down_bias[expert]


class PlainExperts(PlainBiases):
    """Floating weights of ``count`` experts of width ``inner`` in a model of ``width``."""

    def __init__(
        self, count: int, inner: int, width: int, *, bias: ExpertsBias, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight = ExpertsWeight(
            gate_up=torch.empty(count, 2 * inner, width, dtype=dtype, device=device),
            down=torch.empty(count, width, inner, dtype=dtype, device=device),
            gate_up_bias=torch.empty(count, 2 * inner, dtype=dtype, device=device) if bias.gate_up else None,
            down_bias=torch.empty(count, width, dtype=dtype, device=device) if bias.down else None,
        )

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's gate and up projection [2I, D] go."""
        return self.weight.gate_up[expert, start:stop]

    def down(self, expert: int) -> Destination:
        """Where an expert's down projection [D, I] goes."""
        return self.weight.down[expert]


class Plain(Storage):
    """Weights of the model's dtype."""

    def suits(self, dtype: torch.dtype, backend: Backend, takes: Callable[[torch.dtype], bool]) -> bool:  # noqa: ARG002
        return True

    def new_weight(self, site: Site, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:  # noqa: ARG002
        return PlainWeight(n, k, bias=bias, dtype=site.dtype, device=site.device)

    def new_experts(self, site: Site, count: int, inner: int, width: int, *, bias: ExpertsBias) -> NewExperts:
        return PlainExperts(count, inner, width, bias=bias, dtype=site.dtype, device=site.device)


PLAIN = Plain(act_format=ActFormat.FLOAT, head_shares_table=True)
