"""The launches of layers of experts, of the shapes of Qwen3-30B-A3B and gpt-oss-20b and of others that route in their
own ways; see ``compiling``."""

from __future__ import annotations

import itertools
from typing import get_args

import torch
from msgspec.structs import replace

from app.kernels.gpu.launch import Launch, collecting
from app.kernels.types import Act, StepArena
from app.layers.config import ClampedSwiglu, ExpertsConfig, GroupsConfig, Scoring
from app.layers.experts import Experts
from app.quant.placement import Placement, WeightFormat
from tests.aot import compiling

META = torch.device("meta")
SHAPE, WIDTH = ExpertsConfig(count=128, chosen=8, width=768), 2048
FORMATS = (WeightFormat.PLAIN, WeightFormat.W8A8, WeightFormat.W8A16)
TOKENS = (1, 64, 1024)
DEEPSEEK_V3 = ExpertsConfig(
    count=256,
    chosen=8,
    width=2048,
    scoring="sigmoid",
    least_sum=1e-20,
    scale=2.5,
    correction=True,
    groups=GroupsConfig(count=8, chosen=4, best=2),
    shared_width=2048,
)
DEEPSEEK_V2 = ExpertsConfig(
    count=160,
    chosen=6,
    width=1536,
    normalise=False,
    scale=16.0,
    groups=GroupsConfig(count=8, chosen=3, best=1),
    shared_width=3072,
)
ERNIE = ExpertsConfig(count=64, chosen=6, width=1536, least_sum=1e-12, correction=True, shared_width=3072)
QWEN2_MOE = ExpertsConfig(count=60, chosen=4, width=1408, normalise=False, shared_width=5632, shared_gate=True)
GPT_OSS = ExpertsConfig(
    count=32, chosen=4, width=2880, activation=ClampedSwiglu(alpha=1.702, limit=7.0), bias=True, router_bias=True
)
GEMMA4 = ExpertsConfig(count=128, chosen=8, width=704, activation="gelu_tanh", apart=True)
OTHERS = [(GPT_OSS, 2880), (GEMMA4, 2816), (DEEPSEEK_V3, 7168), (DEEPSEEK_V2, 5120), (ERNIE, 2560), (QWEN2_MOE, 2048)]
"""With the width of the model."""


def launches() -> list[Launch]:
    """Few tokens, and more, in every format; of each way to score once; and of other shapes."""
    with collecting() as collected:
        for (fmt, scoring), tokens in itertools.product(zip(FORMATS, get_args(Scoring), strict=True), TOKENS):
            call(replace(SHAPE, scoring=scoring), WIDTH, fmt, tokens)
        for (shape, width), fmt in itertools.product(OTHERS, FORMATS[:2]):
            call(shape, width, fmt, 64)
        for fmt in FORMATS:
            call(GPT_OSS, 2880, fmt, 1)
    return collected


def call(shape: ExpertsConfig, width: int, fmt: WeightFormat, tokens: int) -> None:
    """Starts a layer's kernels."""
    layer = Experts(shape, width, placement=Placement(torch.bfloat16, META, fmt).for_model())
    arena = StepArena(tokens, META)
    arena.begin(tokens)
    layer(layer.layout.take(arena), Act(arena.take(width, torch.bfloat16)))


if __name__ == "__main__":
    compiling.main(launches)
