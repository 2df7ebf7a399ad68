"""``add_norm`` on a GPU: a program a token, the whole row in registers.

Held against the reference in Triton's interpreter and on an H200, without a weight not yet run on a GPU; compiled ahead
of time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, store_row, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act


@triton.jit
def _add_norm(
    x,
    weight,
    residual,
    out,
    out_scale,
    width,
    eps,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    if weight is not None:
        norm_weight = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = to_dtype(value, residual.dtype.element_ty)
        tl.store(residual + row + columns, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if weight is not None:
        mean_square = tl.sum(value * value, axis=0) / width
        value = value * (1.0 / tl.sqrt_rn(mean_square + eps))
        value *= norm_weight
    store_row(out, out_scale, row, columns, inside, value)


def add_norm_triton(x_TD: Tensor, weight_D: Tensor | None, eps: float, out: Act, residual: Tensor | None) -> None:
    """As the public ``add_norm``; an int8 ``out`` has one scale a token."""
    tokens, width = x_TD.shape
    launch(
        _add_norm,
        (tokens,),
        {
            "x": x_TD,
            "weight": weight_D,
            "residual": residual,
            "out": out.values,
            "out_scale": out.scale,
            "width": width,
            "eps": eps,
        },
        {"BLOCK": triton.next_power_of_2(width)},
        **launch_shape("add_norm", width=width),
    )
