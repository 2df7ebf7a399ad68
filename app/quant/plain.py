"""Weights as plain tensors [N, K]: what ``reference.py`` and the GPU's kernels read.

N output features, K input features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.int8 import quantize
from app.kernels.types import ActFormat, ExpertsWeight, LinearWeight, SplitKWorkspace
from app.quant.destination import Destination

_CHUNK_ELEMENTS = 1 << 24
"""Elements quantised at a time: some 300 MB of fp32 on the device, however large the tensor."""


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
        return _Int8Rows(self._values[start:stop], self._scale[start:stop])

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes, if there is one."""
        return None if self._bias is None else self._bias[start:stop]


class PlainExperts:
    """Floating weights of ``count`` experts of width ``inner`` in a model of ``width``."""

    def __init__(self, count: int, inner: int, width: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = ExpertsWeight(
            gate_up=torch.empty(count, 2 * inner, width, dtype=dtype, device=device),
            down=torch.empty(count, width, inner, dtype=dtype, device=device),
        )

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's gate and up projection [2I, D] go."""
        return self.weight.gate_up[expert, start:stop]

    def down(self, expert: int) -> Destination:
        """Where an expert's down projection [D, I] goes."""
        return self.weight.down[expert]


class Int8Experts:
    """Likewise int8 with a scale for each output, quantised as they come."""

    def __init__(self, count: int, inner: int, width: int, *, device: torch.device, int8_input: ActFormat) -> None:
        self._gate_up_scale = torch.empty(count, 2 * inner, dtype=torch.float32, device=device)
        self._down_scale = torch.empty(count, width, dtype=torch.float32, device=device)
        self.weight = ExpertsWeight(
            torch.empty(count, 2 * inner, width, dtype=torch.int8, device=device),
            torch.empty(count, width, inner, dtype=torch.int8, device=device),
            self._gate_up_scale,
            self._down_scale,
            int8_input,
        )

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's gate and up projection [2I, D] go."""
        return _Int8Rows(self.weight.gate_up[expert, start:stop], self._gate_up_scale[expert, start:stop])

    def down(self, expert: int) -> Destination:
        """Where an expert's down projection [D, I] goes."""
        return _Int8Rows(self.weight.down[expert], self._down_scale[expert])


class _Int8Rows:
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
