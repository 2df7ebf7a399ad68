"""``latent_write`` on a GPU: a program for a token's latent, and one for some of its query heads.

Held against the reference in Triton's interpreter; compiled ahead of time for sm_90; not yet run on a GPU.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import LayerLatents


@triton.jit
def _latent_write(
    latent,
    norm,
    q,
    positions,
    rope,
    pages,
    slots,
    q_out,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    eps,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    ROTARY: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    PAIRS: tl.constexpr = ROTARY // 2
    WIDTH: tl.constexpr = RANK + ROTARY
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token, cache_modifier=".cg")
    position = tl.load(positions + token, cache_modifier=".cg")
    pair = tl.arange(0, PAIRS_BLOCK)
    rotated = pair < PAIRS
    cos = tl.load(rope + position * ROTARY + pair, mask=rotated, other=0.0)
    sin = tl.load(rope + position * ROTARY + PAIRS + pair, mask=rotated, other=0.0)
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pair + PAIRS
    column = tl.arange(0, RANK_BLOCK)
    weight = tl.load(norm + column, mask=column < RANK, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    if part == 0:
        at, to = latent + token * WIDTH, pages + slot * WIDTH
        value = tl.load(at + column, mask=column < RANK, other=0.0).to(tl.float32)
        value *= 1.0 / tl.sqrt_rn(tl.sum(value * value, axis=0) / RANK + eps)
        tl.store(to + column, to_dtype(value * weight, pages.dtype.element_ty), mask=column < RANK)
        x = tl.load(at + RANK + first, mask=rotated, other=0.0).to(tl.float32)
        y = tl.load(at + RANK + second, mask=rotated, other=0.0).to(tl.float32)
        tl.store(to + RANK + first, to_dtype(x * cos - y * sin, pages.dtype.element_ty), mask=rotated)
        tl.store(to + RANK + second, to_dtype(y * cos + x * sin, pages.dtype.element_ty), mask=rotated)
    else:
        head = (part - 1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        inside = (head < HEADS)[:, None] & rotated[None, :]
        q_at = q + token * q_token_stride + (head * q_head_stride)[:, None]
        out_at = q_out + token * out_token_stride + (head * out_head_stride)[:, None]
        q_x = tl.load(q_at + first[None, :], mask=inside, other=0.0).to(tl.float32)
        q_y = tl.load(q_at + second[None, :], mask=inside, other=0.0).to(tl.float32)
        turned_x, turned_y = q_x * cos[None, :] - q_y * sin[None, :], q_y * cos[None, :] + q_x * sin[None, :]
        tl.store(out_at + first[None, :], to_dtype(turned_x, q_out.dtype.element_ty), mask=inside)
        tl.store(out_at + second[None, :], to_dtype(turned_y, q_out.dtype.element_ty), mask=inside)


def latent_write_triton(
    latent_TW: Tensor,
    norm_C: Tensor,
    eps: float,
    q_THR: Tensor,
    positions_T: Tensor,
    rope_PR: Tensor,
    pages: LayerLatents,
    slot_mapping_T: Tensor,
    q_out_THR: Tensor,
    interleaved: bool,
) -> None:
    """As the public ``latent_write``."""
    tokens, heads, rotary = q_THR.shape
    rank = norm_C.numel()
    shape = launch_shape("latent_write", rank=rank)
    block_heads = min(shape.pop("BLOCK_HEADS"), triton.next_power_of_2(heads))
    launch(
        _latent_write,
        (tokens, 1 + triton.cdiv(heads, block_heads)),
        {
            "latent": latent_TW,
            "norm": norm_C,
            "q": q_THR,
            "positions": positions_T,
            "rope": rope_PR,
            "pages": pages.values,
            "slots": slot_mapping_T,
            "q_out": q_out_THR,
            "q_token_stride": q_THR.stride(0),
            "q_head_stride": q_THR.stride(1),
            "out_token_stride": q_out_THR.stride(0),
            "out_head_stride": q_out_THR.stride(1),
            "eps": eps,
        },
        {
            "HEADS": heads,
            "RANK": rank,
            "ROTARY": rotary,
            "RANK_BLOCK": triton.next_power_of_2(rank),
            "PAIRS_BLOCK": triton.next_power_of_2(rotary // 2),
            "BLOCK_HEADS": block_heads,
            "INTERLEAVED": interleaved,
        },
        **shape,
    )
