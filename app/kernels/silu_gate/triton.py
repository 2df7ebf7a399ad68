"""``silu_gate`` on a GPU: a program a token and some groups, all of them where int8 needs a scale a token.

Without a norm a group is some columns, as many as are convenient.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import int8_scale, let_next_start, quantize_int8, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act

_COLUMNS = 1024
"""Columns of one program, of a row that is neither normed nor quantised."""


@triton.jit
def _silu_gate(
    x,
    gate,
    gate_stride,
    weight,
    out,
    out_scale,
    eps,
    columns,
    WIDTH: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    column = tl.arange(0, BLOCK)
    place = group[:, None] * WIDTH + column[None, :]
    inside = (place < columns) & (column < WIDTH)[None, :]
    wait_for_inputs(PDL)
    value = tl.load(x + token * columns + place, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(gate + token * gate_stride + place, mask=inside, other=0.0).to(tl.float32)
    value *= z / (1.0 + tl.exp(-z))
    if weight is not None:
        inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, axis=1) / WIDTH + eps)
        value *= inverse[:, None]
        value *= tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    out_at = out + token * columns + place
    if out_scale is not None:
        scale = int8_scale(tl.reshape(value, (BLOCK_GROUPS * BLOCK,)))
        tl.store(out_scale + token, scale)
        tl.store(out_at, quantize_int8(value, scale), mask=inside)
    else:
        tl.store(out_at, to_dtype(value, out.dtype.element_ty), mask=inside)


def silu_gate_triton(x_TN: Tensor, gate_TN: Tensor, out: Act, weight_N: Tensor | None, groups: int, eps: float) -> None:
    """As the public ``silu_gate``; an int8 ``out`` has one scale a token."""
    tokens, columns = x_TN.shape
    if weight_N is None:
        groups = triton.cdiv(columns, _COLUMNS) if out.scale is None else 1
    width = triton.cdiv(columns, groups)
    whole = triton.next_power_of_2(groups)
    block_groups = whole if out.scale is not None else 1
    shape = launch_shape("silu_gate", width=columns if out.scale is not None else width)
    launch(
        _silu_gate,
        (tokens, triton.cdiv(groups, block_groups)),
        {
            "x": x_TN,
            "gate": gate_TN,
            "gate_stride": gate_TN.stride(0),
            "weight": weight_N,
            "out": out.values,
            "out_scale": out.scale,
            "eps": eps,
            "columns": columns,
        },
        {"WIDTH": width, "BLOCK_GROUPS": block_groups, "BLOCK": triton.next_power_of_2(width)},
        **shape,
    )
