"""``packed_attention`` on a GPU: a program walks a sequence's keys for a block of its queries.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.

A query's result depends on its own sequence alone: blocks of keys begin at fixed positions of the sequence, and keys
that a query does not see change nothing.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import dot, let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, PackedSequences


@triton.jit
def _packed_attention(
    qkv,
    cu_seqlens,
    out,
    num_sequences,
    factor,
    window,
    H: tl.constexpr,
    G: tl.constexpr,
    E: tl.constexpr,
    E_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (i, g): the i-th block of queries, counted over all sequences, of KV head g.

    Sequence r's blocks begin at ``cu_seqlens[r] // QUERIES + r``, which leaves room for the rest of every sequence.
    """
    let_next_start(PDL)
    SHARED: tl.constexpr = H // G
    QUERIES: tl.constexpr = BLOCK_M // SHARED
    WIDTH: tl.constexpr = (H + 2 * G) * E
    block, group = tl.program_id(0), tl.program_id(1)
    wait_for_inputs(PDL)
    low = tl.full((), 0, tl.int32)
    high = low + num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens + middle) // QUERIES + middle <= block:
            low = middle
        else:
            high = middle
    begin = tl.load(cu_seqlens + low)
    length = tl.load(cu_seqlens + low + 1) - begin
    first_query = (block - begin // QUERIES - low) * QUERIES
    if first_query >= length:
        return
    lines = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, E_BLOCK)
    query = first_query + lines // SHARED
    live = (query < length) & (lines < QUERIES * SHARED)
    head = group * SHARED + lines % SHARED
    token = (begin + query).to(tl.int64)
    inside = live[:, None] & (columns < E)[None, :]
    queries = tl.load(qkv + token[:, None] * WIDTH + head[:, None] * E + columns[None, :], mask=inside, other=0.0)
    # Lines beside the block do what its first query does, and are not stored.
    position = tl.where(live, query, first_query)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, E_BLOCK), tl.float32)
    start = first_query * 0
    end = length
    if window is not None:
        start = tl.maximum(first_query - window, 0) // TILE * TILE
        end = tl.minimum(length, tl.minimum(first_query + QUERIES, length) + window)
    key_base = qkv + begin.to(tl.int64) * WIDTH + (H + group) * E
    for tile in range(start, end, TILE):
        key = tile + tl.arange(0, TILE)
        at = key.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        held = (key < length)[:, None] & (columns < E)[None, :]
        keys = tl.load(key_base + at, mask=held, other=0.0)
        values = tl.load(key_base + G * E + at, mask=held, other=0.0)
        scores = dot(queries, tl.trans(keys), tl.zeros((BLOCK_M, TILE), tl.float32)) * factor
        visible = (key < length)[None, :]
        if window is not None:
            visible &= tl.abs(position[:, None] - key[None, :]) <= window
        scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing visible yet
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(peak - base)
        mass = mass * decay + tl.sum(weights, axis=1)
        total = dot(to_dtype(weights, qkv.dtype.element_ty), values, total * decay[:, None])
        peak = new_peak
    place = token[:, None] * (H * E) + head[:, None] * E + columns[None, :]
    tl.store(out + place, to_dtype(total / mass[:, None], out.dtype.element_ty), mask=inside)


def packed_attention_triton(
    qkv: Tensor,
    sequences: PackedSequences,
    out: Act,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None,
    scratch: Tensor | None,
) -> None:
    """As the public ``packed_attention``; an int8 ``out`` has one scale a token."""
    target = out.values if out.scale is None else scratch
    if target is None:
        raise ValueError("packed_attention: Triton needs a scratch where out is int8")
    tokens, head_dim, shared = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads), heads // kv_heads
    tuned = launch_shape("packed_attention", head_dim=head_dim, bytes=qkv.element_size())
    block_m = max(tuned.pop("BLOCK_M"), triton.next_power_of_2(shared))
    launch(
        _packed_attention,
        (tokens // (block_m // shared) + sequences.count if sequences.count else 0, kv_heads),
        {
            "qkv": qkv,
            "cu_seqlens": sequences.cu_seqlens,
            "out": target,
            "num_sequences": sequences.count,
            "factor": scale * math.log2(math.e),
            "window": window,
        },
        {
            "H": heads,
            "G": kv_heads,
            "E": head_dim,
            "E_BLOCK": max(16, triton.next_power_of_2(head_dim)),
            "BLOCK_M": block_m,
            "TILE": tuned.pop("TILE"),
        },
        **tuned,
    )
    if out.scale is not None:
        quantize_triton(target, out)
