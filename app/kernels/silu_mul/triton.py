"""``silu(gate) * up`` on a GPU; with int8 a program a token, the whole row in registers.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import int8_scale, let_next_start, quantize_int8, silu_mul, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act


@triton.jit
def _silu_mul(
    x,
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
    gate_at = x + row * 2 * width + columns
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    y = silu_mul(gate, tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32))
    out_at = out + row * width + columns
    if out_scale is not None:
        scale = int8_scale(y)
        tl.store(out_scale + row, scale)
        tl.store(out_at, quantize_int8(y, scale), mask=inside)
    else:
        tl.store(out_at, to_dtype(y, out.dtype.element_ty), mask=inside)


def silu_mul_triton(x: Tensor, out: Act) -> None:
    """``x`` [T, 2 N], a gate's outputs before an up projection's; ``out`` [T, N], int8 with one scale a token."""
    tokens, width = out.values.shape
    whole = triton.next_power_of_2(width)
    shape = launch_shape("silu_mul", width=width, int8=int(out.scale is not None))
    # A scale needs its whole row; floating rows are cut, so that few tokens keep the GPU busy too.
    block = min(whole, shape.pop("BLOCK", whole))
    launch(
        _silu_mul,
        (tokens, triton.cdiv(width, block)),
        {"x": x, "out": out.values, "out_scale": out.scale, "width": width},
        {"BLOCK": block},
        **shape,
    )
