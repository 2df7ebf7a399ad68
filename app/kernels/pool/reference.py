"""Specification of ``pool`` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.kernels.pool.mode import Mode
from app.kernels.types import PackedSequences


def pool_reference(hidden_TD: Tensor, sequences: PackedSequences, modes_R: Tensor, out_RD: Tensor) -> None:
    bounds = sequences.cu_seqlens.tolist()
    for row, (start, end, bits) in enumerate(zip(bounds, bounds[1:], modes_R.tolist(), strict=False)):
        states_SD, mode = hidden_TD[start:end].float(), Mode(bits)
        if Mode.FIRST in mode:
            vector_D = states_SD[0]
        elif Mode.LAST in mode:
            vector_D = states_SD[-1]
        else:
            vector_D = states_SD.mean(dim=0)
        out_RD[row] = F.normalize(vector_D, dim=0, eps=1e-12) if Mode.NORMALIZE in mode else vector_D
