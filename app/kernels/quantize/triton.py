"""``quantize`` on a GPU: a program a token, the whole row in registers.

Held against the reference in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import int8_scale, let_next_start, quantize_int8, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act


@triton.jit
def _quantize(
    x,
    indices,
    out,
    out_scale,
    width,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    source = row
    if indices is not None:
        source = tl.load(indices + row)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + source * width + columns, mask=inside, other=0.0).to(tl.float32)
    scale = int8_scale(value)
    tl.store(out_scale + row, scale)
    tl.store(out + row * width + columns, quantize_int8(value, scale), mask=inside)


def quantize_triton(x: Tensor, out: Act, indices: Tensor | None = None) -> None:
    """Int8 of rows of ``x``, each with one scale.

    Args:
        x: [T, K] floating.
        out: int8 [T, K] with a scale a token; [L, K] with ``indices``.
        indices: [L] int64, the rows to take; all of them in order when absent.
    """
    width = x.shape[1]
    launch(
        _quantize,
        (out.values.shape[0],),
        {"x": x, "indices": indices, "out": out.values, "out_scale": out.scale, "width": width},
        {"BLOCK": triton.next_power_of_2(width)},
        **launch_shape("quantize", width=width),
    )
