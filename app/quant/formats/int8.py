"""int8 weights as plain tensors [N, K] with a scale for each output: what ``reference.py`` and the GPU's kernels read.

N output features, K input features; X experts of width I in a model of width D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.backend import Backend
from app.kernels.int8 import quantize
from app.kernels.types import ActFormat, ExpertsWeight, LinearWeight, SplitKWorkspace
from app.quant.destination import Adapted, Destination, Interleaved, Part, Transposed
from app.quant.experts import ExpertsBias
from app.quant.formats.base import NewExperts, NewWeight, Site, Storage
from app.quant.formats.plain import PLAIN, PlainBiases

_CHUNK_ELEMENTS = 1 << 24
"""Elements quantised at a time: some 300 MB of fp32 on the device, however large the tensor."""


class Int8Weight:
    """int8 weights with a scale for each output, quantised as they come; the bias stays fp32."""

    def __init__(
        self,
        n: int,
        k: int,
        *,
        bias: bool,
        device: torch.device,
        int8_input: ActFormat,
        workspace: SplitKWorkspace | None,
    ) -> None:
        self._values = torch.empty(n, k, dtype=torch.int8, device=device)
        self._scale = torch.empty(n, dtype=torch.float32, device=device)
        self._bias = torch.empty(n, dtype=torch.float32, device=device) if bias else None
        self.weight = LinearWeight(self._values, self._scale, self._bias, int8_input, workspace)

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of the weight go."""
        return Int8Rows(self._values[start:stop], self._scale[start:stop])

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes, if there is one."""
        return None if self._bias is None else self._bias[start:stop]


class Int8Experts(PlainBiases):
    """int8 weights of ``count`` experts of width ``inner`` in a model of ``width``, with a scale for each output,
    quantised as they come; biases stay fp32."""

    def __init__(
        self,
        count: int,
        inner: int,
        width: int,
        *,
        bias: ExpertsBias,
        device: torch.device,
        int8_input: ActFormat,
    ) -> None:
        self._gate_up_scale = torch.empty(count, 2 * inner, dtype=torch.float32, device=device)
        self._down_scale = torch.empty(count, width, dtype=torch.float32, device=device)
        self.weight = ExpertsWeight(
            torch.empty(count, 2 * inner, width, dtype=torch.int8, device=device),
            torch.empty(count, width, inner, dtype=torch.int8, device=device),
            self._gate_up_scale,
            self._down_scale,
            int8_input,
            gate_up_bias=torch.empty_like(self._gate_up_scale) if bias.gate_up else None,
            down_bias=torch.empty_like(self._down_scale) if bias.down else None,
        )

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's gate and up projection [2I, D] go."""
        return Int8Rows(self.weight.gate_up[expert, start:stop], self._gate_up_scale[expert, start:stop])

    def down(self, expert: int) -> Destination:
        """Where an expert's down projection [D, I] goes."""
        return Int8Rows(self.weight.down[expert], self._down_scale[expert])


class Int8Rows:
    """Rows of an int8 weight."""

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self._values, self._scale = values, scale

    @property
    def shape(self) -> torch.Size:
        return self._values.shape

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._scale.nbytes

    def numel(self) -> int:
        return self._values.numel()

    def copy_(self, source: Tensor, /) -> None:
        """Quantises a tensor on the weight's device, some rows at a time."""
        rows = max(1, _CHUNK_ELEMENTS // source.shape[1])
        for start in range(0, source.shape[0], rows):
            chunk = slice(start, start + rows)
            values, scale = quantize(source[chunk].to(self._values.device))
            self._values[chunk].copy_(values)
            self._scale[chunk].copy_(scale)


def outputs_dim(destination: Destination) -> int | None:
    """The dimension of a checkpoint's matrix that counts the outputs of an int8 weight, each with a scale of its own:
    0 of [N, K], 1 of [K, N]. None of any other tensor."""
    match destination:
        case Int8Rows():
            return 0
        case Part():
            return outputs_dim(destination.destination)
        case Transposed():
            dim = outputs_dim(destination.destination)
            return None if dim is None else 1 - dim
        case Adapted():
            return outputs_dim(destination.destination)
        case Interleaved():
            return 0 if all(outputs_dim(part) == 0 for part in destination.parts) else None
    return None


@dataclass(frozen=True, kw_only=True)
class Int8(Storage):
    """int8 weights; activations as :attr:`act_format` says."""

    def suits(self, dtype: torch.dtype, backend: Backend, takes: Callable[[torch.dtype], bool]) -> bool:  # noqa: ARG002
        return backend.int8_input is self.act_format

    def new_weight(self, site: Site, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:  # noqa: ARG002
        return Int8Weight(n, k, bias=bias, device=site.device, int8_input=self.act_format, workspace=site.workspace)

    def new_experts(self, site: Site, count: int, inner: int, width: int, *, bias: ExpertsBias) -> NewExperts:
        return Int8Experts(count, inner, width, bias=bias, device=site.device, int8_input=self.act_format)


class WholeHead(Int8):
    """Likewise, for GPUs; the output head stays floating."""

    def new_head(self, site: Site, vocab_size: int, width: int) -> NewWeight:
        return PLAIN.new_head(site, vocab_size, width)


class WeightOnly(WholeHead):
    """Likewise with floating activations."""

    def suits(self, dtype: torch.dtype, backend: Backend, takes: Callable[[torch.dtype], bool]) -> bool:  # noqa: ARG002
        return not backend.packs_weights


INT8 = Int8(act_format=ActFormat.INT8)
W8A8 = WholeHead(act_format=ActFormat.INT8_TOKEN, split_k=True, head_shares_table=True)
W8A16 = WeightOnly(act_format=ActFormat.FLOAT, split_k=True, head_shares_table=True)
