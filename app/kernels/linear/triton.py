"""``linear`` on a GPU: which product, and what follows it.

int8 weights go to this project's matrix product, floating ones to the library's (cuBLAS), which has the wider tuning;
but one token's product is memory alone, and the epilogues that no library has are ours.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import torch
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.activation.triton import activate_triton
from app.kernels.gemm.triton import gemm_triton
from app.kernels.gemv.triton import gemv_triton, takes_gemv
from app.kernels.lora.step import LowRank
from app.kernels.lora.triton import lora_triton
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, LinearWeight


def linear_triton(
    x: Act,
    weight: LinearWeight,
    out: Act,
    residual: Tensor | None,
    activation: Activation,
    scratch: Tensor | None,
    low_rank: LowRank | None = None,
) -> None:
    """As the public ``linear``; int8 activations have one scale a token."""
    if low_rank is not None:
        _adapted(x, weight, out, residual, activation, scratch, low_rank)
        return
    target = out.values if out.scale is None else _first(scratch, out.values.shape)
    if takes_gemv(x):
        gemv_triton(x, weight, target, residual, activation)
    elif weight.scale is not None:
        gemm_triton(x, weight, target, residual=residual, activation=activation)
    elif activation is not Activation.NONE:
        product = _first(scratch, (x.values.shape[0], weight.values.shape[0])) if activation.gated else target
        _floating_product(x, weight, product, None)
        activate_triton(product, out, activation)
        return
    else:
        _floating_product(x, weight, target, residual)
    if out.scale is not None:
        quantize_triton(target, out)


def _adapted(
    x: Act,
    weight: LinearWeight,
    out: Act,
    residual: Tensor | None,
    activation: Activation,
    scratch: Tensor | None,
    low_rank: LowRank,
) -> None:
    """The product, what adapters add to it, and only then what follows."""
    product = out.values
    if activation.gated or out.scale is not None:
        product = _first(scratch, (x.values.shape[0], weight.values.shape[0]))
    if takes_gemv(x):
        gemv_triton(x, weight, product, residual, Activation.NONE)
    elif weight.scale is not None:
        gemm_triton(x, weight, product, residual=residual)
    else:
        _floating_product(x, weight, product, residual)
    lora_triton(x, low_rank, product)
    if activation is not Activation.NONE:
        activate_triton(product, out, activation)
    elif out.scale is not None:
        quantize_triton(product, out)


def _first(scratch: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The beginning of the scratch as a tensor of a shape."""
    if scratch is None:
        raise ValueError(f"linear: this layer needs a scratch of {list(shape)}")
    rows, width = shape
    return scratch.view(-1)[: rows * width].view(rows, width)


def _floating_product(x: Act, weight: LinearWeight, out: Tensor, residual: Tensor | None) -> None:
    """The library's product with what it can add in fp32 before it rounds; ours for the rest."""
    addend = weight.bias if residual is None else residual
    one_dtype = out.dtype == x.values.dtype and (addend is None or addend.dtype == out.dtype)
    if not one_dtype or (residual is not None and weight.bias is not None):
        gemm_triton(x, weight, out, residual=residual)
    elif addend is None:
        torch.mm(x.values, weight.values.t(), out=out)
    else:
        torch.addmm(addend, x.values, weight.values.t(), out=out)
