"""Matrix-vector product on a GPU: the few outputs of a program are rows of weights that stream past one token.

Nothing but memory limits it, so there are no tensor cores and no shared memory in it, only enough loads under way.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import activate, add_products_int8, let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act, LinearWeight

_WORD = 4
"""Int8 values that are multiplied at once."""


@triton.jit
def _gemv(
    x,
    x_scale,
    weight,
    weight_scale,
    bias,
    residual,
    out,
    n,
    up_offset,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program i: BLOCK_N outputs. Of int8 tokens and weights, x and weight are words of four."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < n
    # Columns past the end read the last one's weights and are not stored.
    weight_at = weight + tl.minimum(columns, n - 1).to(tl.int64)[:, None] * K
    # No kernel writes weights: the first ones are loaded while earlier kernels still run.
    part = _load_weights(weight_at, 0, K, BLOCK_K)
    up_part = part
    if GATED:
        up_part = _load_weights(weight_at + up_offset, 0, K, BLOCK_K)
    let_next_start(PDL)
    wait_for_inputs(PDL)
    y = _scaled(_product(x, weight_at, part, K, BLOCK_K), x_scale, weight_scale, bias, columns, inside)
    if GATED:
        up = _product(x, weight_at + up_offset, up_part, K, BLOCK_K)
        up = _scaled(up, x_scale, weight_scale, bias, n + columns, inside)
        y = activate(y, ACTIVATION) * up
    else:
        y = activate(y, ACTIVATION)
    if residual is not None:
        y += tl.load(residual + columns, mask=inside, other=0).to(tl.float32)
    tl.store(out + columns, to_dtype(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _load_weights(weight_at, start, K: tl.constexpr, BLOCK_K: tl.constexpr):
    depth = start + tl.arange(0, BLOCK_K)
    # Read once: they are not to drive from the L2 what is waiting there for others.
    return tl.load(weight_at + depth[None, :], mask=(depth < K)[None, :], other=0, eviction_policy="evict_first")


@triton.jit
def _product(x, weight_at, part, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """[BLOCK_N] fp32: rows of weights, which begin with ``part``, times x; added up across threads only at the end."""
    WORDS: tl.constexpr = x.dtype.element_ty == tl.int32
    acc = _add_products(part, x, 0, tl.zeros(part.shape, tl.int32 if WORDS else tl.float32), K, BLOCK_K)
    for start in range(BLOCK_K, K, BLOCK_K):
        acc = _add_products(_load_weights(weight_at, start, K, BLOCK_K), x, start, acc, K, BLOCK_K)
    return tl.sum(acc, axis=1).to(tl.float32)


@triton.jit
def _add_products(weights, x, start, acc, K: tl.constexpr, BLOCK_K: tl.constexpr):
    depth = start + tl.arange(0, BLOCK_K)
    x_part = tl.load(x + depth, mask=depth < K, other=0)[None, :]
    if x.dtype.element_ty == tl.int32:
        acc = add_products_int8(weights, x_part, acc)
    else:
        acc += weights.to(tl.float32) * x_part.to(tl.float32)
    return acc


@triton.jit
def _scaled(y, x_scale, weight_scale, bias, columns, inside):
    """Sums with the token's and the weights' scales and their bias, in the order and roundings of a matrix product."""
    if x_scale is not None:
        y *= tl.load(x_scale)
    if weight_scale is not None:
        scale = tl.load(weight_scale + columns, mask=inside, other=0.0)
        if bias is not None:
            y = tl.fma(y, scale, tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32))
        else:
            y *= scale
    elif bias is not None:
        y += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return y


def takes_gemv(x: Act) -> bool:
    """Whether :func:`gemv_triton` multiplies these activations: a token, whose int8 values fill words of four."""
    tokens, width = x.values.shape
    return tokens == 1 and (x.scale is None or width % _WORD == 0)


def gemv_triton(x: Act, weight: LinearWeight, out_1N: Tensor, residual: Tensor | None, activation: Activation) -> None:
    """``linear`` of one token into a floating ``out``; the bits of int8 tokens are those of a matrix product."""
    n, k = out_1N.shape[1], weight.values.shape[1]
    op = "gemv" if weight.scale is None else "gemv_w8a16" if x.scale is None else "gemv_w8a8"
    shape = launch_shape(op, n=n, k=k, gated=int(activation.gated))
    block_n, block_k = shape.pop("BLOCK_N"), shape.pop("BLOCK_K")
    x_values, weights = x.values, weight.values
    if x.scale is not None:
        x_values, weights, k, block_k = (
            x_values.view(torch.int32),
            weights.view(torch.int32),
            k // _WORD,
            block_k // _WORD,
        )
    launch(
        _gemv,
        (triton.cdiv(n, block_n),),
        {
            "x": x_values,
            "x_scale": x.scale,
            "weight": weights,
            "weight_scale": weight.scale,
            "bias": weight.bias,
            "residual": residual,
            "out": out_1N,
            "n": n,
            "up_offset": n * k if activation.gated else 0,
        },
        {
            "K": k,
            "ACTIVATION": activation.function,
            "GATED": activation.gated,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
        },
        **shape,
    )
