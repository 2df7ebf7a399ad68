"""Matrix product on a GPU: int8 by int8 (W8A8), floating by int8 (W8A16), floating by floating, with the epilogue.

W8A8 sums are exact, so that no choice made for speed (tile, split of K, instruction) shows in a row's bits: they depend
neither on the batch nor on the launch shape. Floating sums follow the tiles of K in order, a split adds its parts in
order: the same shapes give the same bits.

Where output tiles are fewer than the GPU has room for, K is split. The programs of a tile leave their sums in the
workspace; the last to arrive adds them up, and sets the tile's count back for the next launch.

Held against a float64 formula in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import (
    activate,
    dot,
    dot_int8,
    dot_int8_weight,
    let_next_start,
    to_dtype,
    wait_for_inputs,
)
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act, LinearWeight, SplitKWorkspace

_MIN_STEPS = 4
"""Tiles of K that a split keeps at least: fewer do not fill a pipeline."""


# Compiled once for every number of rows: nothing is gained from knowing that it is a multiple of 16, or 1.
@triton.jit(do_not_specialize=["m"])
def _gemm(
    x,
    x_scale,
    indices,
    weight,
    weight_scale,
    bias,
    residual,
    out,
    partials,
    arrivals,
    m,
    n,
    up_offset,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_inputs(PDL)
    row_block, column_block = _grouped(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    # 1. Sums of this program's part of K.
    STEPS: tl.constexpr = (K + BLOCK_K * SPLIT_K - 1) // (BLOCK_K * SPLIT_K)
    EVEN: tl.constexpr = STEPS * BLOCK_K * SPLIT_K == K
    present = (rows < m)[:, None]
    source = rows.to(tl.int64)
    if indices is not None:
        source = tl.load(indices + rows, mask=rows < m, other=0)
    depth = tl.program_id(1) * (STEPS * BLOCK_K) + tl.arange(0, BLOCK_K)
    x_at = x + source[:, None] * K + depth[None, :]
    # Columns past the end read the last one's weights and are not stored.
    weight_at = weight + tl.minimum(columns, n - 1).to(tl.int64)[None, :] * K + depth[:, None]
    up_at = weight_at + up_offset
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    up_acc = acc
    for step in range(STEPS):
        if EVEN:
            x_tile = tl.load(x_at, mask=present, other=0)
            weight_tile = tl.load(weight_at)
        else:
            inside = depth < K - step * BLOCK_K
            x_tile = tl.load(x_at, mask=present & inside[None, :], other=0)
            weight_tile = tl.load(weight_at, mask=inside[:, None], other=0)
        acc = _multiply(x_tile, weight_tile, acc)
        if GATED:
            up_tile = tl.load(up_at) if EVEN else tl.load(up_at, mask=inside[:, None], other=0)
            up_acc = _multiply(x_tile, up_tile, up_acc)
            up_at += BLOCK_K
        x_at += BLOCK_K
        weight_at += BLOCK_K

    let_next_start(PDL)

    # 2. Sums of all parts, in the program that arrives last; then the epilogue.
    if SPLIT_K == 1:
        _finish(acc, up_acc, x_scale, weight_scale, bias, residual, out, rows, columns, m, n, ACTIVATION, GATED)
    else:
        tile = tl.program_id(0)
        acc_at = partials + _local(tile, SPLIT_K, GATED, BLOCK_M, BLOCK_N)
        up_acc_at = acc_at + SPLIT_K * BLOCK_M * BLOCK_N
        part = tl.program_id(1) * BLOCK_M * BLOCK_N
        tl.store(acc_at + part, acc)
        if GATED:
            tl.store(up_acc_at + part, up_acc)
        # All threads' sums are out before one thread says so.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLIT_K - 1:
            acc = _total(acc_at, SPLIT_K)
            if GATED:
                up_acc = _total(up_acc_at, SPLIT_K)
            tl.store(arrivals + tile, 0)
            _finish(acc, up_acc, x_scale, weight_scale, bias, residual, out, rows, columns, m, n, ACTIVATION, GATED)


@triton.jit
def _grouped(tile, row_blocks, column_blocks, GROUP_M: tl.constexpr):
    """(row block, column block) of a tile: GROUP_M row blocks share a column of weights while it is in the L2."""
    group_tiles = GROUP_M * column_blocks
    first = tile // group_tiles * GROUP_M
    height = tl.minimum(row_blocks - first, GROUP_M)
    within = tile % group_tiles
    return first + within % height, within // height


@triton.jit
def _multiply(x, weight, acc):
    if x.dtype == tl.int8:
        acc = dot_int8(x, weight, acc)
    elif weight.dtype == tl.int8:
        acc = dot_int8_weight(x, weight, acc)
    else:
        acc = dot(x, weight, acc)
    return acc


@triton.jit
def _local(tile, SPLIT_K: tl.constexpr, GATED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Offsets in the workspace of the sums of a tile's first part, [BLOCK_M, BLOCK_N]."""
    SUMS: tl.constexpr = SPLIT_K * BLOCK_M * BLOCK_N * (2 if GATED else 1)
    return tile * SUMS + tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def _total(parts_at, SPLIT_K: tl.constexpr):
    """Sum of the parts of a tile in order; past the L1, which does not know what other programs wrote."""
    PART: tl.constexpr = parts_at.shape[0] * parts_at.shape[1]
    total = tl.load(parts_at, cache_modifier=".cg")
    for split in tl.static_range(1, SPLIT_K):
        total += tl.load(parts_at + split * PART, cache_modifier=".cg")
    return total


@triton.jit
def _finish(
    acc, up_acc, x_scale, weight_scale, bias, residual, out, rows, columns, m, n, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """The epilogue in fp32, rounded once into ``out``."""
    present = (rows < m)[:, None]
    inside = present & (columns < n)[None, :]
    at = rows.to(tl.int64)[:, None] * n + columns[None, :]
    y = acc.to(tl.float32)
    up = up_acc.to(tl.float32)
    if x_scale is not None:
        row_scale = tl.load(x_scale + rows, mask=rows < m, other=0.0)[:, None]
        y *= row_scale
        up *= row_scale
    y = _scaled(y, weight_scale, bias, columns, columns < n)
    if GATED:
        up = _scaled(up, weight_scale, bias, n + columns, columns < n)
        y = activate(y, ACTIVATION) * up
    else:
        y = activate(y, ACTIVATION)
    if residual is not None:
        y += tl.load(residual + at, mask=inside, other=0).to(tl.float32)
    tl.store(out + at, to_dtype(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _scaled(y, weight_scale, bias, columns, inside):
    """Sums with the weights' scales and their bias."""
    if weight_scale is not None:
        scale = tl.load(weight_scale + columns, mask=inside, other=0.0)[None, :]
        if bias is not None:
            # Said so that every launch shape does it: whether it is done by itself is up to the compiler.
            addend = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
            return tl.fma(y, tl.broadcast_to(scale, y.shape), tl.broadcast_to(addend, y.shape))
        return y * scale
    if bias is not None:
        return y + tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    return y


def gemm_triton(
    x: Act,
    weight: LinearWeight,
    out: Tensor,
    *,
    residual: Tensor | None = None,
    activation: Activation = Activation.NONE,
    indices: Tensor | None = None,
) -> None:
    """``out = x @ weight.T + bias``, then ``+ residual`` or the activation, into a floating ``out``.

    Args:
        x: [T, K] in the format that the weight asks for, one scale a token.
        indices: [L] int64, rows of x to take, floating ones; all of them in order when absent.
        out: [T, N], [T, N / 2] with a gate; [L, N] with ``indices``.
    """
    (m, n), k = out.shape, weight.values.shape[1]
    shape = launch_shape(_op(x, weight), m=m, n=n, k=k, gated=int(activation.gated))
    limit = shape.pop("split_below")
    tiles = triton.cdiv(m, shape["BLOCK_M"]) * triton.cdiv(n, shape["BLOCK_N"])
    tile_sums = shape["BLOCK_M"] * shape["BLOCK_N"] * (2 if activation.gated else 1)
    workspace = weight.workspace
    splits = _splits(tiles, triton.cdiv(k, shape["BLOCK_K"]), tile_sums, limit, workspace)
    partials = arrivals = None
    if splits > 1 and workspace is not None:
        arrivals = workspace.arrivals
        partials = workspace.partials if x.scale is not None else workspace.partials.view(torch.float32)
    launch(
        _gemm,
        (tiles, splits),
        {
            "x": x.values,
            "x_scale": x.scale,
            "indices": indices,
            "weight": weight.values,
            "weight_scale": weight.scale,
            "bias": weight.bias,
            "residual": residual,
            "out": out,
            "partials": partials,
            "arrivals": arrivals,
            "m": m,
            "n": n,
            "up_offset": n * k if activation.gated else 0,
        },
        {
            "K": k,
            "ACTIVATION": activation.function,
            "GATED": activation.gated,
            "SPLIT_K": splits,
            **{name: shape.pop(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")},
        },
        **shape,
    )


def _op(x: Act, weight: LinearWeight) -> str:
    """The product's name in the tables of launch shapes."""
    if weight.scale is None:
        return "gemm"
    return "gemm_w8a16" if x.scale is None else "gemm_w8a8"


def _splits(tiles: int, steps: int, tile_sums: int, limit: int, workspace: SplitKWorkspace | None) -> int:
    """Parts of K, a power of two: as many as keep the launch within ``limit`` programs and the workspace."""
    if workspace is None or tiles > workspace.arrivals.numel():
        return 1
    limit = min(limit, workspace.partials.numel() // tile_sums)
    splits = 1
    while 2 * splits * tiles <= limit and 2 * splits * _MIN_STEPS <= steps:
        splits *= 2
    return splits
