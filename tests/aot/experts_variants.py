"""The launches of a layer of experts, of the shape of Qwen3-30B-A3B; see ``compiling``."""

from __future__ import annotations

import itertools

import torch

from app.kernels.gpu.launch import Launch, collecting
from app.kernels.route import Scoring
from app.kernels.types import Act, StepArena
from app.layers.config import ExpertsConfig
from app.layers.experts import Experts
from app.quant.placement import Placement, WeightFormat
from tests.aot import compiling

META = torch.device("meta")
SHAPE, WIDTH = ExpertsConfig(count=128, chosen=8, width=768), 2048
FORMATS = (WeightFormat.PLAIN, WeightFormat.W8A8, WeightFormat.W8A16)
TOKENS = (1, 64, 1024)


def launches() -> list[Launch]:
    """Few tokens, and more, in every format; of each way to score once."""
    with collecting() as collected:
        for fmt, tokens in itertools.product(FORMATS, TOKENS):
            scoring = dict(zip(FORMATS, Scoring, strict=True))[fmt]
            placement = Placement(torch.bfloat16, META, fmt).for_model()
            layer = Experts(SHAPE, WIDTH, placement=placement, scoring=scoring)
            arena = StepArena(tokens, META)
            arena.begin(tokens)
            layer(layer.layout.take(arena), Act(arena.take(WIDTH, torch.bfloat16)))
    return collected


if __name__ == "__main__":
    compiling.main(launches)
