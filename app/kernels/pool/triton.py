"""``pool`` on a GPU: a program a sequence, its vector in registers.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import PackedSequences


@triton.jit
def _pool(
    hidden,
    cu_seqlens,
    modes,
    out,
    width,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    mode = tl.load(modes + row)
    kind = mode & 3
    begin = tl.load(cu_seqlens + row)
    end = tl.load(cu_seqlens + row + 1)
    count = tl.where(kind == 0, end - begin, 1)
    begin = tl.where(kind == 2, end - 1, begin)
    total = tl.zeros((BLOCK,), tl.float32)
    state = hidden + begin.to(tl.int64) * width + columns
    for _ in range(count):
        total += tl.load(state, mask=inside, other=0.0).to(tl.float32)
        state += width
    total = tl.div_rn(total, tl.broadcast_to(count.to(tl.float32), total.shape))
    if mode & 4:
        length = tl.sqrt_rn(tl.sum(total * total, axis=0))
        total = total / tl.maximum(length, 1e-12)
    tl.store(out + row.to(tl.int64) * width + columns, total, mask=inside)


def pool_triton(hidden_TD: Tensor, sequences: PackedSequences, modes_R: Tensor, out_RD: Tensor) -> None:
    """As the public ``pool``."""
    rows, width = out_RD.shape
    launch(
        _pool,
        (rows,),
        {
            "hidden": hidden_TD,
            "cu_seqlens": sequences.cu_seqlens,
            "modes": modes_R,
            "out": out_RD,
            "width": width,
        },
        {"BLOCK": triton.next_power_of_2(width)},
        **launch_shape("pool", width=width),
    )
