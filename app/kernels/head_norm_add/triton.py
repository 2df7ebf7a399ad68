"""``head_norm_add`` on a GPU: a program a token and some heads.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape


@triton.jit
def _head_norm_add(
    x,
    weight,
    addend,
    out,
    eps,
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK)
    inside = (head < HEADS)[:, None] & (column < WIDTH)[None, :]
    at = token * (HEADS * WIDTH) + head[:, None] * WIDTH + column[None, :]
    norm_weight = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, axis=1) / WIDTH + eps)
    value *= inverse[:, None]
    value *= norm_weight[None, :]
    value += tl.load(addend + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, to_dtype(value * scale, out.dtype.element_ty), mask=inside)


def head_norm_add_triton(
    x_TN: Tensor, weight_E: Tensor, addend_TN: Tensor, out_TN: Tensor, eps: float, scale: float
) -> None:
    """As the public ``head_norm_add``."""
    tokens, width = x_TN.shape[0], weight_E.numel()
    heads = x_TN.shape[1] // width
    # As a gated norm without int8 has no need of its whole row: its launch shapes serve.
    shape = launch_shape("gated_norm", width=x_TN.shape[1], int8=0)
    block_heads = min(triton.next_power_of_2(heads), shape.pop("BLOCK_HEADS"))
    launch(
        _head_norm_add,
        (tokens, triton.cdiv(heads, block_heads)),
        {
            "x": x_TN,
            "weight": weight_E,
            "addend": addend_TN,
            "out": out_TN,
            "eps": eps,
            "scale": scale,
        },
        {"HEADS": heads, "WIDTH": width, "BLOCK_HEADS": block_heads, "BLOCK": triton.next_power_of_2(width)},
        **shape,
    )
