"""``experts`` on a GPU: grouped matrix products, or of few slots a matrix-vector product each; then the weighted sums.

Grids are fixed by the numbers of tokens and experts: how many rows each expert has the programs read on the device, and
those for which there are none end at once. Rows lie by slot between the kernels, so that nothing has to be sorted back.
int8 sums are exact, and scaled in one order: a token's bits do not hang on which kernel it was.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.experts.gate import SILU, Gate
from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import (
    activate,
    add_products_int8,
    dot,
    dot_int8,
    dot_int8_weight,
    let_next_start,
    to_dtype,
    wait_for_inputs,
)
from app.kernels.gpu.tuning import launch_shape
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, ExpertsWeight, Routing

_WORD = 4
"""Int8 values that are multiplied at once."""
_VECTOR_TOKENS = 4
"""Up to this many tokens have few experts in common: a product for each slot reads no more, and pads nothing."""


# Compiled once for every number of row blocks.
@triton.jit(do_not_specialize=["row_blocks"])
def _experts(
    x,
    x_scale,
    slots,
    offsets,
    weight,
    weight_scale,
    bias,
    out,
    row_blocks,
    n,
    up_offset,
    SLOTS_A_ROW: tl.constexpr,
    K: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    GATED: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """A tile of one expert's rows; rows of x are those of slots // SLOTS_A_ROW, rows of out those of slots."""
    wait_for_inputs(PDL)
    # Row blocks of a column lie side by side: those of one expert share its weights while they are in the L2.
    row_block = tl.program_id(0) % row_blocks
    columns = tl.program_id(0) // row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    # 1. Whose rows these are.
    index = tl.arange(0, BLOCK_X)
    begins = tl.load(offsets + index, mask=index < EXPERTS, other=0)
    ends = tl.load(offsets + 1 + index, mask=index < EXPERTS, other=0)
    blocks = (ends - begins + BLOCK_M - 1) // BLOCK_M
    after = tl.cumsum(blocks, axis=0)
    expert = tl.sum((after <= row_block).to(tl.int32), axis=0)
    if expert < EXPERTS:
        mine = index == expert
        first = tl.sum(tl.where(mine, begins + (row_block - after + blocks) * BLOCK_M, 0), axis=0)
        rows = first + tl.arange(0, BLOCK_M)
        inside_rows = rows < tl.sum(tl.where(mine, ends, 0), axis=0)
        slot = tl.load(slots + rows, mask=inside_rows, other=0)
        source = slot // SLOTS_A_ROW
        # 2. Sums along K.
        STACK: tl.constexpr = 2 if GATED else 1
        depth = tl.arange(0, BLOCK_K)
        x_at = x + source.to(tl.int64)[:, None] * K + depth[None, :]
        # Columns past the end read the last one's weights and are not stored.
        own = weight + expert.to(tl.int64) * n * STACK * K
        weight_at = own + tl.minimum(columns, n - 1).to(tl.int64)[None, :] * K + depth[:, None]
        up_at = weight_at + up_offset
        present = inside_rows[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
        up_acc = acc
        for step in range((K + BLOCK_K - 1) // BLOCK_K):
            if K % BLOCK_K == 0:
                x_tile = tl.load(x_at, mask=present, other=0)
                weight_tile = tl.load(weight_at)
            else:
                deep = depth < K - step * BLOCK_K
                x_tile = tl.load(x_at, mask=present & deep[None, :], other=0)
                weight_tile = tl.load(weight_at, mask=deep[:, None], other=0)
            acc = _multiply(x_tile, weight_tile, acc)
            if GATED:
                up_tile = tl.load(up_at) if K % BLOCK_K == 0 else tl.load(up_at, mask=deep[:, None], other=0)
                up_acc = _multiply(x_tile, up_tile, up_acc)
                up_at += BLOCK_K
            x_at += BLOCK_K
            weight_at += BLOCK_K
        let_next_start(PDL)
        # 3. Scales, gate.
        inside = columns < n
        y = acc.to(tl.float32)
        up = up_acc.to(tl.float32)
        if x_scale is not None:
            row_scale = tl.load(x_scale + source, mask=inside_rows, other=0.0)[:, None]
            y *= row_scale
            up *= row_scale
        if weight_scale is not None:
            scale_at = weight_scale + expert * n * STACK + columns
            y *= tl.load(scale_at, mask=inside, other=0.0)[None, :]
            if GATED:
                up *= tl.load(scale_at + n, mask=inside, other=0.0)[None, :]
        if bias is not None:
            bias_at = bias + expert * n * STACK + columns
            y += tl.load(bias_at, mask=inside, other=0.0).to(tl.float32)[None, :]
            if GATED:
                up += tl.load(bias_at + n, mask=inside, other=0.0).to(tl.float32)[None, :]
        if GATED:
            y = _gated(y, up, ALPHA, LIMIT, ACTIVATION)
        out_at = out + slot.to(tl.int64)[:, None] * n + columns[None, :]
        tl.store(out_at, to_dtype(y, out.dtype.element_ty), mask=present & inside[None, :])


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
def _gated(gate, up, ALPHA: tl.constexpr, LIMIT: tl.constexpr, ACTIVATION: tl.constexpr):
    """See :class:`app.kernels.experts.gate.Gate`."""
    if LIMIT is None:
        y = activate(gate, ACTIVATION) * up
    else:  # a minimum would drop a NaN
        gate = tl.where(gate > LIMIT, LIMIT, gate)
        up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up))
        y = (up + 1.0) * (gate / (1.0 + tl.exp(-ALPHA * gate)))
    return y


@triton.jit
def _experts_vector(
    x,
    x_scale,
    experts,
    weight,
    weight_scale,
    bias,
    out,
    n,
    up_offset,
    SLOTS_A_ROW: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_N outputs of one slot. Of int8 rows and weights, x and weight are words of four."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    slot = tl.program_id(1)
    source = slot // SLOTS_A_ROW
    STACK: tl.constexpr = 2 if GATED else 1
    expert = tl.load(experts + slot)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < n
    own = weight + expert.to(tl.int64) * n * STACK * K
    # Columns past the end read the last one's weights and are not stored.
    weight_at = own + tl.minimum(columns, n - 1).to(tl.int64)[:, None] * K
    x_at = x + source.to(tl.int64) * K
    y = _row_product(x_at, weight_at, K, BLOCK_N, BLOCK_K)
    up = y
    if GATED:
        up = _row_product(x_at, weight_at + up_offset, K, BLOCK_N, BLOCK_K)
    if x_scale is not None:
        row_scale = tl.load(x_scale + source)
        y *= row_scale
        up *= row_scale
    if weight_scale is not None:
        scale_at = weight_scale + expert * n * STACK + columns
        y *= tl.load(scale_at, mask=inside, other=0.0)
        if GATED:
            up *= tl.load(scale_at + n, mask=inside, other=0.0)
    if bias is not None:
        bias_at = bias + expert * n * STACK + columns
        y += tl.load(bias_at, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias_at + n, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        y = _gated(y, up, ALPHA, LIMIT, ACTIVATION)
    tl.store(out + slot.to(tl.int64) * n + columns, to_dtype(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _row_product(x_at, weight_at, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """[BLOCK_N] fp32: rows of weights times one of x; added up across threads only at the end."""
    WORDS: tl.constexpr = x_at.dtype.element_ty == tl.int32
    depth = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.int32 if WORDS else tl.float32)
    for start in range(0, K, BLOCK_K):
        deep = start + depth < K
        weights = tl.load(weight_at + (start + depth)[None, :], mask=deep[None, :], other=0)
        part = tl.load(x_at + start + depth, mask=deep, other=0)[None, :]
        if WORDS:
            acc = add_products_int8(weights, part, acc)
        else:
            acc += weights.to(tl.float32) * part.to(tl.float32)
    return tl.sum(acc, axis=1).to(tl.float32)


@triton.jit
def _weighted_sum(
    products,
    weights,
    residual,
    residual_gate,
    out,
    width,
    CHOSEN: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """A token's results, each times what it counts, in the order of its choice."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros((BLOCK,), tl.float32)
    if residual is not None:
        total += tl.load(residual + token * width + columns, mask=inside, other=0.0).to(tl.float32)
        if residual_gate is not None:
            total *= 1.0 / (1.0 + tl.exp(-tl.load(residual_gate + token * GATE_STRIDE)))
    for j in range(CHOSEN):
        result = tl.load(products + (token * CHOSEN + j) * width + columns, mask=inside, other=0.0)
        total += tl.load(weights + token * CHOSEN + j) * result.to(tl.float32)
    tl.store(out + token * width + columns, to_dtype(total, out.dtype.element_ty), mask=inside)


def experts_triton(
    x: Act,
    weight: ExpertsWeight,
    routing: Routing,
    out_TD: Tensor,
    hidden: Act,
    products: Tensor,
    residual: Tensor | None,
    residual_gate: Tensor | None,
    gate: Gate,
) -> None:
    """As the public ``experts``; int8 activations have one scale a token, ``products`` is their scratch."""
    slots, inner = hidden.values.shape
    (tokens, width), chosen = out_TD.shape, routing.experts.shape[1]
    flat = products.view(-1)
    gated = hidden.values if hidden.scale is None else flat[: slots * inner].view(slots, inner)
    results = flat[: slots * width].view(slots, width)
    gate_up = _Projection(weight.gate_up, weight.gate_up_scale, weight.gate_up_bias, gate)
    _product(x, gate_up, routing, gated, slots_a_row=chosen)
    if hidden.scale is not None:
        quantize_triton(gated, hidden)
    _product(hidden, _Projection(weight.down, weight.down_scale, weight.down_bias), routing, results, slots_a_row=1)
    shape = launch_shape("weighted_sum", width=width)
    block = min(triton.next_power_of_2(width), shape.pop("BLOCK"))
    launch(
        _weighted_sum,
        (tokens, triton.cdiv(width, block)),
        {
            "products": results,
            "weights": routing.weights,
            "residual": residual,
            "residual_gate": residual_gate,
            "out": out_TD,
            "width": width,
        },
        {
            "CHOSEN": chosen,
            "GATE_STRIDE": 0 if residual_gate is None else residual_gate.stride(0),
            "BLOCK": block,
        },
        **shape,
    )


@dataclass(frozen=True, slots=True)
class _Projection:
    """A product of every expert."""

    values: Tensor
    """[X, N, K], or [X, 2N, K] of a gate and an up projection."""
    scale: Tensor | None
    bias: Tensor | None
    gate: Gate | None = None
    """Gate of those two."""

    def arguments(self, n: int) -> dict[str, Any]:
        """A kernel's, as far as they are pointers and sizes."""
        offset = 0 if self.gate is None else n * self.values.shape[2]
        return {"weight_scale": self.scale, "bias": self.bias, "n": n, "up_offset": offset}

    def constants(self) -> dict[str, Any]:
        """A kernel's."""
        gate = self.gate or SILU
        return {
            "GATED": self.gate is not None,
            "ALPHA": gate.alpha,
            "LIMIT": gate.limit,
            "ACTIVATION": gate.activation,
        }


def _product(x: Act, weight: _Projection, routing: Routing, out: Tensor, *, slots_a_row: int) -> None:
    """``out`` [S, N]: each slot's row of x times its expert's weights, or what the gate makes of two products."""
    tokens = routing.experts.shape[0]
    if tokens <= _VECTOR_TOKENS and (x.scale is None or weight.values.shape[2] % _WORD == 0):
        _vector_product(x, weight, routing, out, slots_a_row=slots_a_row)
        return
    (slots, n), (experts, _, k) = out.shape, weight.values.shape
    rows = triton.cdiv(slots, experts)
    shape = launch_shape(_op("experts", x, weight.scale), m=rows, n=n, k=k, gated=int(weight.gate is not None))
    # Each expert may have one block that is not full.
    row_blocks = slots // shape["BLOCK_M"] + min(slots, experts)
    launch(
        _experts,
        (row_blocks * triton.cdiv(n, shape["BLOCK_N"]),),
        {
            "x": x.values,
            "x_scale": x.scale,
            "slots": routing.slots,
            "offsets": routing.offsets,
            "weight": weight.values,
            "out": out,
            "row_blocks": row_blocks,
            **weight.arguments(n),
        },
        {
            "SLOTS_A_ROW": slots_a_row,
            "K": k,
            "EXPERTS": experts,
            "BLOCK_X": triton.next_power_of_2(experts),
            **weight.constants(),
            **{name: shape.pop(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")},
        },
        **shape,
    )


def _vector_product(x: Act, weight: _Projection, routing: Routing, out: Tensor, *, slots_a_row: int) -> None:
    (slots, n), k, arguments = out.shape, weight.values.shape[2], weight.arguments(out.shape[1])
    shape = launch_shape(_op("experts_vector", x, weight.scale), n=n, k=k, gated=int(weight.gate is not None))
    block_n, block_k = shape.pop("BLOCK_N"), shape.pop("BLOCK_K")
    values, weights = x.values, weight.values
    if x.scale is not None:  # in words
        values, weights, k, block_k = values.view(torch.int32), weights.view(torch.int32), k // _WORD, block_k // _WORD
        arguments["up_offset"] //= _WORD
    launch(
        _experts_vector,
        (triton.cdiv(n, block_n), slots),
        {
            "x": values,
            "x_scale": x.scale,
            "experts": routing.experts,
            "weight": weights,
            "out": out,
            **arguments,
        },
        {"SLOTS_A_ROW": slots_a_row, "K": k, **weight.constants(), "BLOCK_N": block_n, "BLOCK_K": block_k},
        **shape,
    )


def _op(name: str, x: Act, scale: Tensor | None) -> str:
    """Its name in the tables of launch shapes."""
    if scale is None:
        return name
    return f"{name}_w8a16" if x.scale is None else f"{name}_w8a8"
