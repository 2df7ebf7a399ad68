"""``scale_logits`` on a GPU: a program a row and block of logits.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. Not yet run on a GPU.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, tanh, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape


@triton.jit
def _scale_logits(logits, width, scale, cap, BLOCK: tl.constexpr, CAPPED: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait_for_inputs(PDL)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = logits + tl.program_id(0).to(tl.int64) * width + columns
    y = tl.load(at, mask=inside, other=0.0) * scale
    if CAPPED:
        y = cap * tanh(y / cap)
    tl.store(at, y, mask=inside)


def scale_logits_triton(logits_LV: Tensor, scale: float, softcap: float | None) -> None:
    """As the public ``scale_logits``."""
    rows, width = logits_LV.shape
    shape = launch_shape("scale_logits", width=width)
    block = shape.pop("BLOCK")
    launch(
        _scale_logits,
        (rows, triton.cdiv(width, block)),
        {"logits": logits_LV, "width": width, "scale": float(scale), "cap": float(softcap or 1.0)},
        {"BLOCK": block, "CAPPED": softcap is not None},
        **shape,
    )
