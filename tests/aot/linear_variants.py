"""Compiles the products of an 8B model's linear layers for a GPU that need not be there; prints a JSON row for each.

Run with TRITON_INTERPRET=0: what the interpreter takes may not compile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.gpu.aot import compile_launch
from app.kernels.gpu.launch import Launch, collecting
from app.kernels.gpu.tuning import compiling_for
from app.kernels.linear import Activation, linear, scratch_width
from app.kernels.types import Act, ActFormat, LinearWeight, SplitKWorkspace

META = torch.device("meta")
WIDTH, INNER, QKV, VOCAB = 4096, 14336, 6144, 128256
LAYERS = [(QKV, WIDTH, Activation.NONE), (2 * INNER, WIDTH, Activation.SILU_MUL), (WIDTH, INNER, Activation.NONE)]
"""(N, K, activation)."""
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
    silu_mul = activation is Activation.SILU_MUL
    out_format = weight.act_format if silu_mul else ActFormat.FLOAT
    width = scratch_width(weight, out_format, activation)
    out = act(tokens, n // 2 if silu_mul else n, out_format)
    scratch = empty(tokens, width) if width else None
    linear(act(tokens, k, weight.act_format), weight, out, activation=activation, scratch=scratch)


def launches() -> list[Launch]:
    with collecting() as collected:
        for tokens in ROWS:
            for n, k, activation in LAYERS:
                for weight in weights(n, k):
                    call(weight, activation, tokens)
            logits, indices = empty(tokens, VOCAB, dtype=torch.float32), empty(tokens, dtype=torch.int64)
            gather_lm_head(empty(tokens, WIDTH), indices, LinearWeight(empty(VOCAB, WIDTH)), logits)
    return collected


def main() -> None:
    capability, seen = int(sys.argv[1]), set[Any]()
    with compiling_for(capability):
        for launch in launches():
            key = (launch.name, launch.signature, launch.constants, launch.aligned, launch.num_warps, launch.num_stages)
            if key in seen:
                continue
            seen.add(key)
            made = compile_launch(launch, capability)
            row = {
                "name": made.name,
                "constants": {name: value for name, value in launch.constants if value is not None},
                "int8": ("x", "*i8") in launch.signature,
                "registers": made.registers,
                "stack": made.stack_bytes,
                "shared": made.shared_bytes,
                "wgmma": made.uses_wgmma,
            }
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
