"""``lora`` on a GPU: a kernel to the low rank and one back, a program a token and some ranks, or some outputs.

Both read the token's slot first, and end at once where it has none. Prompts read an adapter's weights once a token,
from the second-level cache.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.lora.step import LowRank
from app.kernels.types import Act


@triton.jit
def _lora_shrink(
    x,
    x_scale,
    down,
    ranks,
    slots,
    low,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (token, block of ranks, part)."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        rank = tl.load(ranks + slot * PARTS + part)
        row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
        if tl.program_id(1) * BLOCK_R < rank:
            down_at = down + ((slot * PARTS + part) * RANK + row)[:, None] * K
            acc = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
            for first in range(0, K, BLOCK_K):
                inner = first + tl.arange(0, BLOCK_K)
                inside = inner < K
                values = tl.load(x + token * K + inner, mask=inside, other=0).to(tl.float32)
                present = (row < rank)[:, None] & inside[None, :]
                weights = tl.load(down_at + inner[None, :], mask=present, other=0.0).to(tl.float32)
                acc += weights * values[None, :]
            total = tl.sum(acc, axis=1)
            if x_scale is not None:
                total *= tl.load(x_scale + token)
            tl.store(low + (token * PARTS + part) * RANK + row, total, mask=row < rank)


@triton.jit
def _lora_expand(
    low,
    up,
    ranks,
    ends,
    slots,
    out,
    n,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (token, block of outputs)."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = column < n
        part = tl.zeros((BLOCK_N,), tl.int32)
        for index in range(PARTS - 1):
            part += (column >= tl.load(ends + index)).to(tl.int32)
        rank = tl.load(ranks + slot * PARTS + part, mask=inside, other=0)
        low_at = low + (token * PARTS + part) * RANK
        up_at = up + slot * RANK * n + column
        acc = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
        for first in range(0, RANK, BLOCK_R):
            row = first + tl.arange(0, BLOCK_R)
            present = (row[:, None] < rank[None, :]) & inside[None, :]
            values = tl.load(low_at[None, :] + row[:, None], mask=present, other=0.0)
            weights = tl.load(up_at[None, :] + row.to(tl.int64)[:, None] * n, mask=present, other=0.0)
            acc += values * weights.to(tl.float32)
        out_at = out + token * n + column
        total = tl.load(out_at, mask=inside, other=0.0).to(tl.float32) + tl.sum(acc, axis=0)
        tl.store(out_at, to_dtype(total, out.dtype.element_ty), mask=inside)


def lora_triton(x: Act, low_rank: LowRank, out_TN: Tensor) -> None:
    """As the public ``lora``; int8 inputs have one scale a token."""
    weight = low_rank.plain
    (tokens, k), n = x.values.shape, out_TN.shape[1]
    whole = triton.next_power_of_2(weight.rank)
    shape = launch_shape("lora_shrink", k=k)
    block_r, block_k = min(shape.pop("BLOCK_R"), whole), min(shape.pop("BLOCK_K"), triton.next_power_of_2(k))
    launch(
        _lora_shrink,
        (tokens, triton.cdiv(weight.rank, block_r), weight.parts),
        {
            "x": x.values,
            "x_scale": x.scale,
            "down": weight.down,
            "ranks": weight.ranks,
            "slots": low_rank.slots,
            "low": low_rank.scratch,
        },
        {"K": k, "PARTS": weight.parts, "RANK": weight.rank, "BLOCK_R": block_r, "BLOCK_K": block_k},
        **shape,
    )
    shape = launch_shape("lora_expand", n=n)
    block_r, block_n = min(shape.pop("BLOCK_R"), whole), min(shape.pop("BLOCK_N"), triton.next_power_of_2(n))
    launch(
        _lora_expand,
        (tokens, triton.cdiv(n, block_n)),
        {
            "low": low_rank.scratch,
            "up": weight.up,
            "ranks": weight.ranks,
            "ends": weight.ends,
            "slots": low_rank.slots,
            "out": out_TN,
            "n": n,
        },
        {"PARTS": weight.parts, "RANK": weight.rank, "BLOCK_R": block_r, "BLOCK_N": block_n},
        **shape,
    )
