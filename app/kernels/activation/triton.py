"""An activation, and a gate's product with an up projection, on a GPU; with int8 a program a token, the whole row in
registers.

Held against a float64 formula in Triton's interpreter, and with SiLU on an H200, with others on no GPU yet; compiled
ahead of time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import activate, int8_scale, let_next_start, quantize_int8, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act


@triton.jit
def _activate(
    x,
    out,
    out_scale,
    width,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    if GATED:
        gate_at = x + row * 2 * width + columns
        gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32)
        y = activate(gate, ACTIVATION) * up
    else:
        y = activate(tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    out_at = out + row * width + columns
    if out_scale is not None:
        scale = int8_scale(y)
        tl.store(out_scale + row, scale)
        tl.store(out_at, quantize_int8(y, scale), mask=inside)
    else:
        tl.store(out_at, to_dtype(y, out.dtype.element_ty), mask=inside)


def activate_triton(x: Tensor, out: Act, activation: Activation) -> None:
    """``out`` [T, N], int8 with one scale a token; ``x`` [T, N], which may be the memory of a floating ``out``, or
    [T, 2 N], a gate's outputs before an up projection's."""
    tokens, width = out.values.shape
    whole = triton.next_power_of_2(width)
    shape = launch_shape("activation", width=width, int8=int(out.scale is not None))
    # A scale needs its whole row; floating rows are cut, so that few tokens keep the GPU busy too.
    block = min(whole, shape.pop("BLOCK", whole))
    launch(
        _activate,
        (tokens, triton.cdiv(width, block)),
        {"x": x, "out": out.values, "out_scale": out.scale, "width": width},
        {"ACTIVATION": activation.function, "GATED": activation.gated, "BLOCK": block},
        **shape,
    )
