"""``gelu_mul`` on a GPU; with int8 a program a token, the whole row in registers.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import activate, int8_scale, let_next_start, quantize_int8, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act


@triton.jit
def _gelu_mul(
    gate,
    x,
    x_stride,
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
    z = tl.load(gate + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    z = tl.where(z < -10.0, -10.0, z)  # of less it is zero too, by way of an infinity; a maximum would drop a NaN
    value = activate(z, "gelu_tanh") * tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    out_at = out + row * width + columns
    if out_scale is not None:
        scale = int8_scale(value)
        tl.store(out_scale + row, scale)
        tl.store(out_at, quantize_int8(value, scale), mask=inside)
    else:
        tl.store(out_at, to_dtype(value, out.dtype.element_ty), mask=inside)


def gelu_mul_triton(gate_TN: Tensor, x_TN: Tensor, out: Act) -> None:
    """As the public ``gelu_mul``; an int8 ``out`` has one scale a token."""
    tokens, width = gate_TN.shape
    whole = triton.next_power_of_2(width)
    # A scale needs its whole row, as an activation's does: its launch shapes serve.
    shape = launch_shape("activation", width=width, int8=int(out.scale is not None))
    block = min(whole, shape.pop("BLOCK", whole))
    launch(
        _gelu_mul,
        (tokens, triton.cdiv(width, block)),
        {
            "gate": gate_TN,
            "x": x_TN,
            "x_stride": x_TN.stride(0),
            "out": out.values,
            "out_scale": out.scale,
            "width": width,
        },
        {"BLOCK": block},
        **shape,
    )
