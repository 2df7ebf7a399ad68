"""``layer_norm`` on a GPU: a program a token, the whole row in registers.

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
def _layer_norm(
    x,
    weight,
    bias,
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
    norm_weight = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    norm_bias = tl.zeros([BLOCK], dtype=tl.float32)
    if bias is not None:
        norm_bias = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    value = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = to_dtype(value, residual.dtype.element_ty)
        tl.store(residual + row + columns, rounded, mask=inside)
        value = rounded.to(tl.float32)
    value = tl.where(inside, value - tl.sum(value, axis=0) / width, 0.0)
    variance = tl.sum(value * value, axis=0) / width
    normed = value * (1.0 / tl.sqrt_rn(variance + eps)) * norm_weight + norm_bias
    store_row(out, out_scale, row, columns, inside, normed)


def layer_norm_triton(
    x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float, out: Act, residual: Tensor | None
) -> None:
    """As the public ``layer_norm``; an int8 ``out`` has one scale a token."""
    tokens, width = x_TD.shape
    launch(
        _layer_norm,
        (tokens,),
        {
            "x": x_TD,
            "weight": weight_D,
            "bias": bias_D,
            "residual": residual,
            "out": out.values,
            "out_scale": out.scale,
            "width": width,
            "eps": eps,
        },
        {"BLOCK": triton.next_power_of_2(width)},
        **launch_shape("layer_norm", width=width),
    )
