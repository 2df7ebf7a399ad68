"""``head_linear`` on a GPU: a program a head, block of tokens and block of columns.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90; not yet run on a GPU.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import dot, let_next_start, to_dtype, wait_for_inputs, widen
from app.kernels.gpu.tuning import launch_shape


@triton.jit
def _head_linear(
    x,
    weight,
    out,
    tokens,
    x_token_stride,
    x_head_stride,
    out_token_stride,
    out_head_stride,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (n, m, h)."""
    let_next_start(PDL)
    head = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = (token < tokens)[:, None]
    x_at = x + head * x_head_stride + token.to(tl.int64)[:, None] * x_token_stride
    weight_at = weight + head * (K * N) + column[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    wait_for_inputs(PDL)
    for k in range(0, K, BLOCK_K):
        inner = k + tl.arange(0, BLOCK_K)
        a = tl.load(x_at + inner[None, :], mask=live & (inner < K)[None, :], other=0.0)
        b = tl.load(weight_at + inner[:, None] * N, mask=(inner < K)[:, None] & (column < N)[None, :], other=0.0)
        acc = dot(a, widen(b, a.dtype), acc)
    out_at = out + head * out_head_stride + token.to(tl.int64)[:, None] * out_token_stride + column[None, :]
    tl.store(out_at, to_dtype(acc, out.dtype.element_ty), mask=live & (column < N)[None, :])


def head_linear_triton(x_THK: Tensor, weight_HKN: Tensor, out_THN: Tensor) -> None:
    """As the public ``head_linear``."""
    heads, k, n = weight_HKN.shape
    tokens = x_THK.shape[0]
    shape = launch_shape("head_linear", m=tokens, itemsize=x_THK.itemsize)
    block_n = min(shape.pop("BLOCK_N"), max(16, triton.next_power_of_2(n)))
    block_k = min(shape.pop("BLOCK_K"), max(16, triton.next_power_of_2(k)))
    launch(
        _head_linear,
        (triton.cdiv(n, block_n), triton.cdiv(tokens, shape["BLOCK_M"]), heads),
        {
            "x": x_THK,
            "weight": weight_HKN,
            "out": out_THN,
            "tokens": tokens,
            "x_token_stride": x_THK.stride(0),
            "x_head_stride": x_THK.stride(1),
            "out_token_stride": out_THN.stride(0),
            "out_head_stride": out_THN.stride(1),
        },
        {"K": k, "N": n, "BLOCK_M": shape.pop("BLOCK_M"), "BLOCK_N": block_n, "BLOCK_K": block_k},
        **shape,
    )
