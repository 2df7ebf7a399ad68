"""``gated_conv`` on a GPU: a program a token and block of channels, then one a row that leaves its state.

The state may be left where it was read from, so that all tokens of a step are computed before any row leaves its own;
of decodes alone, whose rows have a token each, one kernel does both. With int8 a block is the whole row.

Held against the reference in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import int8_scale, let_next_start, quantize_int8, to_dtype, wait_for_inputs
from app.kernels.gpu.state import row_of, state_row
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Act, AttentionMetadata, LayerState


@triton.jit
def _input(projected, state, token, index, source, channel, C: tl.constexpr, K: tl.constexpr):
    """fp32 input ``index`` of a row whose first token is ``token``; inputs below 0 are in the row's state."""
    at = state + (source * (K - 1) + (K - 1) + index) * C + channel
    held = tl.load(at, mask=channel < tl.where((index < 0) & (source >= 0), C, 0), other=0.0).to(tl.float32)
    at = projected + (token + index).to(tl.int64) * (3 * C) + channel
    own = channel < tl.where(index < 0, 0, C)
    gate = tl.load(at, mask=own, other=0.0).to(tl.float32)
    x = tl.load(at + 2 * C, mask=own, other=0.0).to(tl.float32)
    return tl.where(index < 0, held, to_dtype(gate * x, projected.dtype.element_ty).to(tl.float32))


@triton.jit
def _convolve(
    projected,
    weight,
    bias,
    state,
    out,
    out_scale,
    token,
    index,
    source,
    channel,
    C: tl.constexpr,
    K: tl.constexpr,
):
    """Computes token ``index`` of a row whose first token is ``token``."""
    inside = channel < C
    total = tl.zeros(channel.shape, tl.float32)
    for tap in tl.static_range(K):
        factor = tl.load(weight + tap * C + channel, mask=inside, other=0.0)
        total += factor * _input(projected, state, token, index - (K - 1) + tap, source, channel, C, K)
    if bias is not None:
        total += tl.load(bias + channel, mask=inside, other=0.0)
    place = (token + index).to(tl.int64)
    total *= tl.load(projected + place * (3 * C) + C + channel, mask=inside, other=0.0).to(tl.float32)
    at = out + place * C + channel
    if out_scale is not None:
        scale = int8_scale(total)
        tl.store(out_scale + place, scale)
        tl.store(at, quantize_int8(total, scale), mask=inside)
    else:
        tl.store(at, to_dtype(total, out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_conv(
    projected,
    weight,
    bias,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
    out_scale,
    num_rows,
    C: tl.constexpr,
    K: tl.constexpr,
    B: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    place = tl.program_id(0)
    row = row_of(query_start_loc, num_rows, place)
    token, tokens, _, source, _, _, _ = state_row(query_start_loc, seq_lens, block_tables, table_width, row, B)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    if place < token + tokens:
        _convolve(projected, weight, bias, state, out, out_scale, token, place - token, source, channel, C, K)


@triton.jit
def _leave_gated_conv_state(
    projected,
    weight,
    bias,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
    out_scale,
    C: tl.constexpr,
    K: tl.constexpr,
    B: tl.constexpr,
    BLOCK: tl.constexpr,
    CONVOLVE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Leaves a row's state; with CONVOLVE its token is computed first, of which there is one at most."""
    let_next_start(PDL)
    token, tokens, _, source, target, checkpoint, before = state_row(
        query_start_loc, seq_lens, block_tables, table_width, tl.program_id(0), B
    )
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    left = channel < tl.where(target >= 0, C, 0)
    ahead = tl.where(checkpoint >= 0, before, 0)  # without a boundary any tokens: they are not stored
    left_middle = channel < tl.where(checkpoint >= 0, C, 0)
    wait_for_inputs(PDL)
    if tokens > 0:
        if CONVOLVE:
            _convolve(projected, weight, bias, state, out, out_scale, token, 0, source, channel, C, K)
        # Ascending, each thread its own channels: what is overwritten has been read, wherever the state is left.
        for kept in tl.static_range(K - 1):
            index = kept - (K - 1)
            last = _input(projected, state, token, tokens + index, source, channel, C, K)
            middle = _input(projected, state, token, ahead + index, source, channel, C, K)
            at = state + kept * C + channel
            tl.store(at + checkpoint * ((K - 1) * C), to_dtype(middle, state.dtype.element_ty), mask=left_middle)
            tl.store(at + target * ((K - 1) * C), to_dtype(last, state.dtype.element_ty), mask=left)


def gated_conv_triton(
    projected_TN: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out: Act,
    bias_C: Tensor | None,
) -> None:
    """As the public ``gated_conv``; an int8 ``out`` has one scale a token."""
    tokens, (taps, channels) = projected_TN.shape[0], weight_KC.shape
    rows = meta.seq_lens.numel()
    whole = triton.next_power_of_2(channels)
    shape = launch_shape("gated_conv", width=channels, int8=int(out.scale is not None))
    block = min(whole, shape.pop("BLOCK", whole))
    arguments = {
        "projected": projected_TN,
        "weight": weight_KC,
        "bias": bias_C,
        "state": state.conv,
        "query_start_loc": meta.query_start_loc,
        "seq_lens": meta.seq_lens,
        "block_tables": meta.block_tables,
        "table_width": meta.block_tables.stride(0),
        "out": out.values,
        "out_scale": out.scale,
    }
    constants = {"C": channels, "K": taps, "B": state.block_size, "BLOCK": block}
    pieces = triton.cdiv(channels, block)
    decodes = meta.max_query_len <= 1
    if not decodes:
        launch(_gated_conv, (tokens, pieces), {**arguments, "num_rows": rows}, constants, **shape)
    launch(_leave_gated_conv_state, (rows, pieces), arguments, {**constants, "CONVOLVE": decodes}, **shape)
