"""The launches of a layer of experts, of the shape of Qwen3-30B-A3B; see ``compiling``."""

from __future__ import annotations

import itertools

import torch

from app.kernels.gpu.launch import Launch, collecting
from app.kernels.route import Scoring
from app.kernels.types import Act, ActFormat, StepArena
from app.layers.experts import Experts
from app.quant.placement import Placement, WeightFormat
from tests.aot import compiling

META = torch.device("meta")
COUNT, CHOSEN, INNER, WIDTH = 128, 8, 768, 2048
FORMATS = (WeightFormat.PLAIN, WeightFormat.W8A8, WeightFormat.W8A16)
TOKENS = (1, 64, 1024)


def act(tokens: int, fmt: ActFormat) -> Act:
    if fmt is ActFormat.FLOAT:
        return Act(torch.empty(tokens, WIDTH, dtype=torch.bfloat16, device=META))
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=META)
    return Act(torch.empty(tokens, WIDTH, dtype=torch.int8, device=META), scale)


def launches() -> list[Launch]:
    """Few tokens, and more, in every format; of each way to score once."""
    with collecting() as collected:
        for fmt, tokens in itertools.product(FORMATS, TOKENS):
            scoring = dict(zip(FORMATS, Scoring, strict=True))[fmt]
            placement = Placement(torch.bfloat16, META, fmt).for_model()
            layer = Experts(COUNT, CHOSEN, INNER, WIDTH, placement=placement, normalise=True, scoring=scoring)
            arena = StepArena(tokens, META)
            arena.begin(tokens)
            acts = layer.take(arena, torch.bfloat16)
            layer(act(tokens, layer.act_format), arena.take(WIDTH, torch.bfloat16), acts)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
