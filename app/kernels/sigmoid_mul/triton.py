"""``sigmoid_mul`` on a GPU; with int8 a program a token, the whole row in registers.

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
def _sigmoid_mul(
    x,
    gate,
    gate_stride,
    out,
    out_scale,
    width,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    value = value / (1.0 + tl.exp(-z))
    out_at = out + row * width + columns
    if out_scale is not None:
        scale = int8_scale(value)
        tl.store(out_scale + row, scale)
        tl.store(out_at, quantize_int8(value, scale), mask=inside)
    else:
        tl.store(out_at, to_dtype(value, out.dtype.element_ty), mask=inside)


def sigmoid_mul_triton(x_TN: Tensor, gate_TN: Tensor, out: Act) -> None:
    """As the public ``sigmoid_mul``; an int8 ``out`` has one scale a token."""
    tokens, width = x_TN.shape
    whole = triton.next_power_of_2(width)
    # A scale needs its whole row, as an activation's does: its launch shapes serve.
    shape = launch_shape("activation", width=width, int8=int(out.scale is not None))
    block = min(whole, shape.pop("BLOCK", whole))
    launch(
        _sigmoid_mul,
        (tokens, triton.cdiv(width, block)),
        {
            "x": x_TN,
            "gate": gate_TN,
            "gate_stride": gate_TN.stride(0),
            "out": out.values,
            "out_scale": out.scale,
            "width": width,
        },
        {"BLOCK": block},
        **shape,
    )
