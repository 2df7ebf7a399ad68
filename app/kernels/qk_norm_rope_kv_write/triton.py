"""``qk_norm_rope_kv_write`` on a GPU: a program a token and block of heads, whichever of the three kinds they are.

A head's elements stand in one row of the tile. What an element is rotated with lies half a rotation away in the same
head and is loaded again: the line is in the cache, and no thread has to ask another for it.

Held against the reference in Triton's interpreter and on an H200; without a rotation, with a norm over all heads and
with factors on queries not yet run on a GPU. Compiled ahead of time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import int8_scale, let_next_start, quantize_int8, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.qk_norm_rope_kv_write.preparation import Preparation, norms_whole
from app.kernels.types import LayerKVCache


@triton.jit
def _qk_norm_rope_kv_write(
    qkv,
    positions,
    rope,
    slots,
    q_norm,
    k_norm,
    q_scale,
    q_out,
    pages,
    page_scale,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    PAIR_DISTANCE: tl.constexpr,
    WHOLE_NORM: tl.constexpr,
    VALUE_NORM: tl.constexpr,
    KEY_IS_VALUE: tl.constexpr,
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
    first_half = column < HALF
    turned = column < ROTARY_DIM
    if PAIR_DISTANCE != HALF:
        turned = first_half | ((column >= PAIR_DISTANCE) & (column < PAIR_DISTANCE + HALF))
    partner = tl.where(first_half, column + PAIR_DISTANCE, column - PAIR_DISTANCE)
    is_query, is_turned = head < HEADS, head < HEADS + KV_HEADS
    both = is_turned[:, None] & turned[None, :]
    # Before waiting: where the token stands, and what never changes.
    slot = tl.load(slots + token, cache_modifier=".cg")
    if rope is not None:
        position = tl.load(positions + token, cache_modifier=".cg")
        frequency = rope + position * ROTARY_DIM + tl.where(first_half, column, column - PAIR_DISTANCE)
        cos = tl.load(frequency, mask=turned, other=1.0)
        sin = tl.load(frequency + HALF, mask=turned, other=0.0)
        sin = tl.where(first_half, -sin, sin)
    if q_norm is not None:
        if WHOLE_NORM:
            weight = _whole_weight(q_norm, k_norm, head, column, column < HEAD_DIM, HEADS, KV_HEADS, HEAD_DIM)
            partner_weight = _whole_weight(q_norm, k_norm, head, partner, turned, HEADS, KV_HEADS, HEAD_DIM)
        else:
            weight = _norm_weight(q_norm, k_norm, is_query, column, column < HEAD_DIM)
            partner_weight = _norm_weight(q_norm, k_norm, is_query, partner, turned)
    if q_scale is not None:
        factor = tl.load(q_scale + tl.load(positions + token, cache_modifier=".cg"))
    wait_for_inputs(PDL)

    source = token * ALL + head
    if KEY_IS_VALUE:
        source = token * (HEADS + KV_HEADS) + tl.where(is_turned, head, head - KV_HEADS)
    start = source * HEAD_DIM
    value = tl.load(qkv + start[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(qkv + start[:, None] + partner[None, :], mask=both, other=0.0).to(tl.float32)
    if q_norm is not None:
        if WHOLE_NORM:
            tl.static_assert(not KEY_IS_VALUE)
            queries = qkv + token * (ALL * HEAD_DIM)
            query_mean = _sum_of_squares(queries, HEADS * HEAD_DIM) / (HEADS * HEAD_DIM)
            key_mean = _sum_of_squares(queries + HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM) / (KV_HEADS * HEAD_DIM)
            mean_square = tl.where(is_query, query_mean, key_mean)
        else:
            mean_square = tl.sum(value * value, axis=1) / HEAD_DIM
        inverse = 1.0 / tl.sqrt_rn(mean_square + eps)
        other *= inverse[:, None] * partner_weight
        if VALUE_NORM:
            tl.static_assert(not WHOLE_NORM)
            value *= tl.where(is_turned[:, None], inverse[:, None] * weight, inverse[:, None])
        else:
            value = tl.where(is_turned[:, None], value * (inverse[:, None] * weight), value)
    if rope is not None:
        value = tl.where(both, value * cos[None, :] + other * sin[None, :], value)

    query = value
    if q_scale is not None:
        query = value * factor
    query_at = q_out + ((token * HEADS + head) * HEAD_DIM)[:, None] + column[None, :]
    tl.store(query_at, to_dtype(query, q_out.dtype.element_ty), mask=inside & is_query[:, None])

    # Keys, then values, of all KV heads: [2, KV_HEADS] of a page are one axis.
    if KV_HEADS > 0:
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
    key = query
    if k_norm is not None:
        key = tl.load(k_norm + column, mask=mask, other=0.0).to(tl.float32)
    return tl.where(is_query[:, None], query[None, :], key[None, :])


@triton.jit
def _whole_weight(
    q_norm, k_norm, head, column, mask, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """[heads, columns]: of each head its part of the weights of a norm over all heads."""
    of_query = (head < HEADS)[:, None] & mask[None, :]
    of_key = ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None] & mask[None, :]
    at = head[:, None] * HEAD_DIM + column[None, :]
    query = tl.load(q_norm + at, mask=of_query, other=0.0).to(tl.float32)
    key = tl.load(k_norm + (at - HEADS * HEAD_DIM), mask=of_key, other=0.0).to(tl.float32)
    return tl.where((head < HEADS)[:, None], query, key)


@triton.jit
def _sum_of_squares(x, COUNT: tl.constexpr):
    """Sum of the squares of elements that every program of a token reads, whichever heads it has."""
    SPAN: tl.constexpr = 1024
    total = tl.zeros((SPAN,), tl.float32)
    for start in range(0, COUNT, SPAN):
        at = start + tl.arange(0, SPAN)
        value = tl.load(x + at, mask=at < COUNT, other=0.0).to(tl.float32)
        total += value * value
    return tl.sum(total, axis=0)


def qk_norm_rope_kv_write_triton(
    qkv: Tensor,
    positions_T: Tensor,
    kv: LayerKVCache | None,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    how: Preparation,
) -> None:
    """As the public ``qk_norm_rope_kv_write``, over pages that are not packed."""
    tokens, heads, head_dim = q_out.shape
    kv_heads = 0 if kv is None else kv.values.shape[2]
    shape = launch_shape("qk_norm_rope_kv_write", head_dim=head_dim)
    block_heads = shape.pop("BLOCK_HEADS")
    launch(
        _qk_norm_rope_kv_write,
        (tokens, triton.cdiv(heads + 2 * kv_heads, block_heads)),
        {
            "qkv": qkv,
            "positions": positions_T,
            "rope": how.rope,
            "slots": slot_mapping_T,
            "q_norm": how.q_norm,
            "k_norm": how.k_norm,
            "q_scale": how.q_scale,
            "q_out": q_out,
            "pages": None if kv is None else kv.values,
            "page_scale": None if kv is None else kv.scale,
            "eps": how.eps,
        },
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "ROTARY_DIM": how.rotary_dim,
            "PAIR_DISTANCE": how.distance,
            "WHOLE_NORM": norms_whole(how.q_norm, head_dim),
            "VALUE_NORM": how.value_norm,
            "KEY_IS_VALUE": how.key_is_value,
            "PAGE": 1 if kv is None else kv.block_size,
            "BLOCK": triton.next_power_of_2(head_dim),
            "BLOCK_HEADS": block_heads,
        },
        **shape,
    )
