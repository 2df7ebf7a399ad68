"""The launches of the products of an 8B model's linear layers; see ``compiling``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.gpu.launch import Launch, collecting
from app.kernels.linear import Activation, linear, scratch_width
from app.kernels.lora import LowRank, LowRankWeight
from app.kernels.types import Act, ActFormat, LinearWeight, SplitKWorkspace
from tests.aot import compiling

META = torch.device("meta")
WIDTH, INNER, QKV, VOCAB = 4096, 14336, 6144, 128256
LAYERS = [(QKV, WIDTH, Activation.NONE), (2 * INNER, WIDTH, Activation.SILU_MUL), (WIDTH, INNER, Activation.NONE)]
"""(N, K, activation)."""
OTHERS = [(2 * INNER, WIDTH, Activation.GELU_TANH_MUL)]
OTHERS += [(INNER, WIDTH, activation) for activation in (Activation.GELU, Activation.GELU_TANH, Activation.RELU2)]
"""Of other models, with fewer numbers of tokens."""
ROWS = (1, 16, 64, 65, 129, 1024)
WORKSPACE = SplitKWorkspace.new(META)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def act(tokens: int, width: int, fmt: ActFormat) -> Act:
    if fmt is ActFormat.FLOAT:
        return Act(empty(tokens, width))
    return Act(empty(tokens, width, dtype=torch.int8), empty(tokens, 1, dtype=torch.float32))


def weights(n: int, k: int) -> Iterator[LinearWeight]:
    bias = empty(n, dtype=torch.float32)
    yield LinearWeight(empty(n, k), bias=empty(n))
    for int8_input in (ActFormat.INT8_TOKEN, ActFormat.FLOAT):
        scale = empty(n, dtype=torch.float32)
        yield LinearWeight(empty(n, k, dtype=torch.int8), scale, bias, int8_input, WORKSPACE)


def call(weight: LinearWeight, activation: Activation, tokens: int) -> None:
    n, k = weight.values.shape
    out_format = ActFormat.FLOAT if activation is Activation.NONE else weight.act_format
    width = scratch_width(weight, out_format, activation)
    out = act(tokens, n // 2 if activation.gated else n, out_format)
    scratch = empty(tokens, width) if width else None
    linear(act(tokens, k, weight.act_format), weight, out, activation=activation, scratch=scratch)


def adapters(tokens: int, n: int, k: int, parts: int) -> LowRank:
    slots, rank = 16, 16
    weight = LowRankWeight(
        empty(slots, parts, rank, k),
        empty(slots, rank, n),
        empty(slots, parts, dtype=torch.int32),
        empty(parts, dtype=torch.int32),
    )
    scratch = empty(tokens * weight.scratch_width, dtype=torch.float32)
    return LowRank(weight, empty(tokens, dtype=torch.int32), empty(tokens, dtype=torch.int32), scratch)


def adapted(weight: LinearWeight, activation: Activation, tokens: int) -> None:
    n, k = weight.values.shape
    width = scratch_width(weight, ActFormat.FLOAT, activation, adapted=True)
    out = act(tokens, n // 2 if activation.gated else n, ActFormat.FLOAT)
    low_rank = adapters(tokens, n, k, 2 if activation.gated else 3)
    scratch = empty(tokens, width) if width else None
    x = act(tokens, k, weight.act_format)
    linear(x, weight, out, activation=activation, scratch=scratch, low_rank=low_rank)


def launches() -> list[Launch]:
    with collecting() as collected:
        for n, k, activation in LAYERS:
            for weight in weights(n, k):
                adapted(weight, activation, 64)
        for tokens in ROWS:
            for n, k, activation in LAYERS + (OTHERS if tokens in (1, 64) else []):
                for weight in weights(n, k):
                    call(weight, activation, tokens)
            logits, indices = empty(tokens, VOCAB, dtype=torch.float32), empty(tokens, dtype=torch.int64)
            gather_lm_head(empty(tokens, WIDTH), indices, LinearWeight(empty(VOCAB, WIDTH)), logits)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
