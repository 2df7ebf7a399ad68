"""``qk_norm_rope_kv_write`` on a GPU: a program a token and block of heads, whichever of the three kinds they are.

A head's elements stand in one row of the tile. What an element is rotated with lies half a rotation away in the same
head and is loaded again: the line is in the cache, and no thread has to ask another for it.

Held against the reference in Triton's interpreter and on an H200, without a rotation on no GPU yet; compiled ahead of
time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import int8_scale, let_next_start, quantize_int8, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import LayerKVCache


@triton.jit
def _qk_norm_rope_kv_write(
    qkv,
    positions,
    rope,
    slots,
    q_norm,
    k_norm,
    q_out,
    pages,
    page_scale,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    HALF: tl.constexpr = ROTARY_DIM // 2
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK)
    inside = (head < ALL)[:, None] & (column < HEAD_DIM)[None, :]
    turned = column < ROTARY_DIM
    partner = tl.where(column < HALF, column + HALF, column - HALF)
    is_query, is_turned = head < HEADS, head < HEADS + KV_HEADS
    both = is_turned[:, None] & turned[None, :]
    # Before waiting: where the token stands, and what never changes.
    slot = tl.load(slots + token, cache_modifier=".cg")
    if rope is not None:
        position = tl.load(positions + token, cache_modifier=".cg")
        frequency = rope + position * ROTARY_DIM + tl.where(column < HALF, column, column - HALF)
        cos = tl.load(frequency, mask=turned, other=1.0)
        sin = tl.load(frequency + HALF, mask=turned, other=0.0)
        sin = tl.where(column < HALF, -sin, sin)
    if q_norm is not None:
        weight = _norm_weight(q_norm, k_norm, is_query, column, column < HEAD_DIM)
        partner_weight = _norm_weight(q_norm, k_norm, is_query, partner, turned)
    wait_for_inputs(PDL)

    start = (token * ALL + head) * HEAD_DIM
    value = tl.load(qkv + start[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(qkv + start[:, None] + partner[None, :], mask=both, other=0.0).to(tl.float32)
    if q_norm is not None:
        inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value, axis=1) / HEAD_DIM + eps)
        other *= inverse[:, None] * partner_weight
        value = tl.where(is_turned[:, None], value * (inverse[:, None] * weight), value)
    if rope is not None:
        value = tl.where(both, value * cos[None, :] + other * sin[None, :], value)

    query_at = q_out + ((token * HEADS + head) * HEAD_DIM)[:, None] + column[None, :]
    tl.store(query_at, to_dtype(value, q_out.dtype.element_ty), mask=inside & is_query[:, None])

    # Keys, then values, of all KV heads: [2, KV_HEADS] of a page are one axis.
    row = ((slot // PAGE) * (2 * KV_HEADS) + head - HEADS) * PAGE + slot % PAGE
    kept = inside & (head >= HEADS)[:, None]
    at = pages + row[:, None] * HEAD_DIM + column[None, :]
    if page_scale is not None:
        # Values are those of the scale as it is stored.
        scale = int8_scale(value, 1).to(page_scale.dtype.element_ty)
        tl.store(page_scale + row, scale, mask=(head >= HEADS) & (head < ALL))
        tl.store(at, quantize_int8(value, scale.to(tl.float32)[:, None]), mask=kept)
    else:
        tl.store(at, to_dtype(value, pages.dtype.element_ty), mask=kept)


@triton.jit
def _norm_weight(q_norm, k_norm, is_query, column, mask):
    """[heads, columns]: of each head its norm's weights."""
    query = tl.load(q_norm + column, mask=mask, other=0.0).to(tl.float32)
    key = tl.load(k_norm + column, mask=mask, other=0.0).to(tl.float32)
    return tl.where(is_query[:, None], query[None, :], key[None, :])


def qk_norm_rope_kv_write_triton(
    qkv: Tensor,
    positions_T: Tensor,
    rope_PE: Tensor | None,
    kv: LayerKVCache,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    """As the public ``qk_norm_rope_kv_write``, over pages that are not packed."""
    tokens, heads, head_dim = q_out.shape
    kv_heads = kv.values.shape[2]
    shape = launch_shape("qk_norm_rope_kv_write", head_dim=head_dim)
    block_heads = shape.pop("BLOCK_HEADS")
    launch(
        _qk_norm_rope_kv_write,
        (tokens, triton.cdiv(heads + 2 * kv_heads, block_heads)),
        {
            "qkv": qkv,
            "positions": positions_T,
            "rope": rope_PE,
            "slots": slot_mapping_T,
            "q_norm": q_norm,
            "k_norm": k_norm,
            "q_out": q_out,
            "pages": kv.values,
            "page_scale": kv.scale,
            "eps": eps,
        },
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "ROTARY_DIM": 0 if rope_PE is None else rope_PE.shape[-1],
            "PAGE": kv.block_size,
            "BLOCK": triton.next_power_of_2(head_dim),
            "BLOCK_HEADS": block_heads,
        },
        **shape,
    )
