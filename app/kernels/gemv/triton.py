"""Matrix-vector product on a GPU: the few outputs of a program are rows of weights that stream past one token.

Nothing but memory limits it, so there are no tensor cores and no shared memory in it, only enough loads under way.

Not yet run on a GPU; held against a float64 formula in Triton's interpreter and compiled ahead of time for sm_80 to
sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import silu_mul, to_dtype
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import LinearWeight


@triton.jit
def _gemv(
    x,
    weight,
    weight_scale,
    bias,
    residual,
    out,
    n,
    up_offset,
    K: tl.constexpr,
    SILU_MUL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < n
    # Columns past the end read the last one's weights and are not stored.
    weight_at = weight + tl.minimum(columns, n - 1).to(tl.int64)[:, None] * K
    y = _product(x, weight_at, K, BLOCK_N, BLOCK_K)
    y = _scaled(y, weight_scale, bias, columns, inside)
    if SILU_MUL:
        up = _product(x, weight_at + up_offset, K, BLOCK_N, BLOCK_K)
        y = silu_mul(y, _scaled(up, weight_scale, bias, n + columns, inside))
    if residual is not None:
        y += tl.load(residual + columns, mask=inside, other=0).to(tl.float32)
    tl.store(out + columns, to_dtype(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _product(x, weight_at, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """[BLOCK_N] fp32: rows of weights times x, added up across threads only at the end."""
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        x_part = tl.load(x + depth, mask=depth < K, other=0).to(tl.float32)
        weight_part = tl.load(weight_at + depth[None, :], mask=(depth < K)[None, :], other=0).to(tl.float32)
        acc += weight_part * x_part[None, :]
    return tl.sum(acc, axis=1)


@triton.jit
def _scaled(y, weight_scale, bias, columns, inside):
    if weight_scale is not None:
        y *= tl.load(weight_scale + columns, mask=inside, other=0.0)
    if bias is not None:
        y += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return y


def gemv_triton(x_1K: Tensor, weight: LinearWeight, out_1N: Tensor, residual: Tensor | None, silu_mul: bool) -> None:
    """``linear`` of one floating token into a floating ``out``; the weight is floating or int8."""
    n, k = out_1N.shape[1], weight.values.shape[1]
    op = "gemv" if weight.scale is None else "gemv_w8a16"
    shape = launch_shape(op, n=n, k=k, silu_mul=int(silu_mul))
    blocks = {name: shape.pop(name) for name in ("BLOCK_N", "BLOCK_K")}
    launch(
        _gemv,
        (triton.cdiv(n, blocks["BLOCK_N"]),),
        {
            "x": x_1K,
            "weight": weight.values,
            "weight_scale": weight.scale,
            "bias": weight.bias,
            "residual": residual,
            "out": out_1N,
            "n": n,
            "up_offset": n * k if silu_mul else 0,
        },
        {"K": k, "SILU_MUL": silu_mul, **blocks},
        **shape,
    )
