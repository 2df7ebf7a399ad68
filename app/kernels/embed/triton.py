"""``embed`` on a GPU: a program a token.

Held against the table in Triton's interpreter and on an H200, scale and positions on no GPU yet; compiled ahead of time
for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape


@triton.jit
def _embed(
    token_ids,
    table,
    positions,
    position_table,
    out,
    width,
    first,
    rows,
    scale,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    # No later kernel starts before the step's first one has ended: all may read at once what that one wrote.
    wait_for_inputs(PDL)
    let_next_start(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    entry = tl.load(token_ids + token) - first
    held = tl.where((entry >= 0) & (entry < rows), width, 0)
    value = tl.load(table + entry * width + columns, mask=columns < held, other=0.0)
    if scale is not None:
        value = value.to(tl.float32) * scale
    if positions is not None:
        position = tl.load(positions + token) * width
        learned = tl.load(position_table + position + columns, mask=columns < held, other=0.0)
        value = value.to(tl.float32) + learned.to(tl.float32)
    if scale is not None or positions is not None:
        value = to_dtype(value, out.dtype.element_ty)
    tl.store(out + token * width + columns, value.to(out.dtype.element_ty), mask=inside)


def embed_triton(
    token_ids_T: Tensor,
    table_VD: Tensor,
    out_TD: Tensor,
    first: int,
    scale: float,
    positions_T: Tensor | None,
    position_table_PD: Tensor | None,
) -> None:
    """As the public ``embed``."""
    tokens, width = out_TD.shape
    launch(
        _embed,
        (tokens,),
        {
            "token_ids": token_ids_T,
            "table": table_VD,
            "positions": positions_T,
            "position_table": position_table_PD,
            "out": out_TD,
            "width": width,
            "first": first,
            "rows": table_VD.shape[0],
            "scale": None if scale == 1.0 else scale,
        },
        {"BLOCK": triton.next_power_of_2(width)},
        **launch_shape("embed", width=width),
    )
