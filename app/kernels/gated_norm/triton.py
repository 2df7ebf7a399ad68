"""``gated_norm`` on a GPU: a program a token and some heads, all of them where int8 needs a scale a token.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import int8_scale, let_next_start, quantize_int8, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act


@triton.jit
def _gated_norm(
    x,
    weight,
    gate,
    gate_stride,
    out,
    out_scale,
    eps,
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
    place = head[:, None] * WIDTH + column[None, :]
    norm_weight = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + token * (HEADS * WIDTH) + place, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(gate + token * gate_stride + place, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, axis=1) / WIDTH + eps)
    value *= inverse[:, None]
    value *= norm_weight[None, :]
    value *= z / (1.0 + tl.exp(-z))
    out_at = out + token * (HEADS * WIDTH) + place
    if out_scale is not None:
        scale = int8_scale(tl.reshape(value, (BLOCK_HEADS * BLOCK,)))
        tl.store(out_scale + token, scale)
        tl.store(out_at, quantize_int8(value, scale), mask=inside)
    else:
        tl.store(out_at, to_dtype(value, out.dtype.element_ty), mask=inside)


def gated_norm_triton(x_TN: Tensor, weight_E: Tensor, gate_TN: Tensor, eps: float, out: Act) -> None:
    """As the public ``gated_norm``; an int8 ``out`` has one scale a token."""
    tokens, width = x_TN.shape[0], weight_E.numel()
    heads = x_TN.shape[1] // width
    whole = triton.next_power_of_2(heads)
    shape = launch_shape("gated_norm", width=x_TN.shape[1], int8=int(out.scale is not None))
    block_heads = min(whole, shape.pop("BLOCK_HEADS", whole))
    launch(
        _gated_norm,
        (tokens, triton.cdiv(heads, block_heads)),
        {
            "x": x_TN,
            "weight": weight_E,
            "gate": gate_TN,
            "gate_stride": gate_TN.stride(0),
            "out": out.values,
            "out_scale": out.scale,
            "eps": eps,
        },
        {"HEADS": heads, "WIDTH": width, "BLOCK_HEADS": block_heads, "BLOCK": triton.next_power_of_2(width)},
        **shape,
    )
