"""``norm_add_norm`` on a GPU: a program a token, the whole row in registers.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90, run on no GPU yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, store_row, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act


@triton.jit
def _norm_add_norm(
    x,
    x_weight,
    residual,
    weight,
    factor,
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
    first_weight = tl.load(x_weight + columns, mask=inside, other=0.0).to(tl.float32)
    if weight is not None:
        second_weight = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if factor is not None:
        scale = tl.load(factor)
    wait_for_inputs(PDL)
    value = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
    total += _rms_norm(value, width, eps) * first_weight
    if factor is not None:
        total *= scale
    rounded = to_dtype(total, residual.dtype.element_ty)
    tl.store(residual + row + columns, rounded, mask=inside)
    total = rounded.to(tl.float32)
    if weight is not None:
        total = _rms_norm(total, width, eps) * second_weight
    store_row(out, out_scale, row, columns, inside, total)


@triton.jit
def _rms_norm(value, width, eps):
    mean_square = tl.sum(value * value, axis=0) / width
    return value * (1.0 / tl.sqrt_rn(mean_square + eps))


def norm_add_norm_triton(
    x_TD: Tensor,
    x_weight_D: Tensor,
    residual: Tensor,
    weight_D: Tensor | None,
    eps: float,
    out: Act,
    factor: Tensor | None,
) -> None:
    """As the public ``norm_add_norm``; an int8 ``out`` has one scale a token."""
    tokens, width = x_TD.shape
    launch(
        _norm_add_norm,
        (tokens,),
        {
            "x": x_TD,
            "x_weight": x_weight_D,
            "residual": residual,
            "weight": weight_D,
            "factor": factor,
            "out": out.values,
            "out_scale": out.scale,
            "width": width,
            "eps": eps,
        },
        {"BLOCK": triton.next_power_of_2(width)},
        **launch_shape("norm_add_norm", width=width),
    )
