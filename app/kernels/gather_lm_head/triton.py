"""``gather_lm_head`` on a GPU: a matrix product that finds its rows by their indices, with fp32 out.

No library product is used, so that int8 models are batch-invariant to the end: every number of rows takes the same
tiles of K in the same order, in tensor-core instructions of one shape, whatever the launch shape.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

from torch import Tensor

from app.kernels.gemm.triton import gemm_triton
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, LinearWeight


def gather_lm_head_triton(
    hidden_TD: Tensor, indices_L: Tensor, weight: LinearWeight, out_LV: Tensor, scratch: Act | None
) -> None:
    """As the public ``gather_lm_head``; ``scratch`` is there where the weight wants int8 inputs."""
    if scratch is None:
        gemm_triton(Act(hidden_TD), weight, out_LV, indices=indices_L)
    else:
        quantize_triton(hidden_TD, scratch, indices_L)
        gemm_triton(scratch, weight, out_LV)
