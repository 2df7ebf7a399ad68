"""The launches of gated short convolutions of several widths; see ``compiling``."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from app.kernels.gated_conv import gated_conv
from app.kernels.gpu.launch import Launch, collecting
from app.kernels.types import LayerState
from tests.aot import compiling
from tests.aot.delta_variants import BLOCK, ROWS, act, empty, step

SHAPES = ((1024, 3), (2048, 3), (2560, 4), (5120, 3))
"""Channels and taps."""


def call(channels: int, taps: int, tokens: int, longest: int, *, dtype: torch.dtype, int8: bool, bias: bool) -> None:
    state = LayerState(empty(32, taps - 1, channels, dtype=dtype), torch.empty(0), BLOCK)
    weight: Tensor = empty(taps, channels, dtype=torch.float32)
    bias_C = empty(channels, dtype=torch.float32) if bias else None
    out, meta = act(tokens, channels, int8=int8), step(tokens, longest)
    gated_conv(empty(tokens, 3 * channels, dtype=dtype), weight, state, meta, out, bias_C=bias_C)


def launches() -> list[Launch]:
    """Of bf16, decodes alone and beside prompts; of the first width fp32 and biases too."""
    with collecting() as collected:
        for (channels, taps), (tokens, longest), int8 in itertools.product(
            SHAPES, ((ROWS, 1), (200, 100)), (False, True)
        ):
            call(channels, taps, tokens, longest, dtype=torch.bfloat16, int8=int8, bias=False)
        call(*SHAPES[0], 200, 100, dtype=torch.float32, int8=False, bias=True)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
