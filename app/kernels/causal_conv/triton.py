"""``causal_conv`` on a GPU: a program a token and block of channels, then one a row that leaves its state.

The state may be left where it was read from, so that all tokens of a step are computed before any row leaves its own;
of decodes alone, whose rows have a token each, one kernel does both.

Held against the reference in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.state import row_of, state_row
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import AttentionMetadata, LayerState


@triton.jit
def _input(x, x_stride, state, token, index, source, channel, C: tl.constexpr, K: tl.constexpr):
    """fp32 input ``index`` of a row whose first token is ``token``; inputs below 0 are in the row's state."""
    at = state + (source * (K - 1) + (K - 1) + index) * C + channel
    held = tl.load(at, mask=channel < tl.where((index < 0) & (source >= 0), C, 0), other=0.0)
    at = x + (token + index).to(tl.int64) * x_stride + channel
    own = tl.load(at, mask=channel < tl.where(index < 0, 0, C), other=0.0)
    return tl.where(index < 0, held, own).to(tl.float32)


@triton.jit
def _convolve(x, x_stride, weight, bias, state, out, token, index, source, channel, C: tl.constexpr, K: tl.constexpr):
    """Computes token ``index`` of a row whose first token is ``token``."""
    total = tl.zeros(channel.shape, tl.float32)
    for tap in tl.static_range(K):
        factor = tl.load(weight + tap * C + channel, mask=channel < C, other=0.0)
        total += factor * _input(x, x_stride, state, token, index - (K - 1) + tap, source, channel, C, K)
    if bias is not None:
        total += tl.load(bias + channel, mask=channel < C, other=0.0)
    at = out + (token + index).to(tl.int64) * C + channel
    tl.store(at, to_dtype(total / (1.0 + tl.exp(-total)), out.dtype.element_ty), mask=channel < C)


@triton.jit
def _causal_conv(
    x,
    x_stride,
    weight,
    bias,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
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
        _convolve(x, x_stride, weight, bias, state, out, token, place - token, source, channel, C, K)


@triton.jit
def _leave_conv_state(
    x,
    x_stride,
    weight,
    bias,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
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
            _convolve(x, x_stride, weight, bias, state, out, token, 0, source, channel, C, K)
        # Ascending, each thread its own channels: what is overwritten has been read, wherever the state is left.
        for kept in tl.static_range(K - 1):
            index = kept - (K - 1)
            last = _input(x, x_stride, state, token, tokens + index, source, channel, C, K)
            middle = _input(x, x_stride, state, token, ahead + index, source, channel, C, K)
            at = state + kept * C + channel
            tl.store(at + checkpoint * ((K - 1) * C), to_dtype(middle, state.dtype.element_ty), mask=left_middle)
            tl.store(at + target * ((K - 1) * C), to_dtype(last, state.dtype.element_ty), mask=left)


def causal_conv_triton(
    x_TC: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TC: Tensor,
    bias_C: Tensor | None,
) -> None:
    """As the public ``causal_conv``."""
    tokens, channels = x_TC.shape
    rows = meta.seq_lens.numel()
    shape = launch_shape("causal_conv")
    block = shape.pop("BLOCK")
    arguments = {
        "x": x_TC,
        "x_stride": x_TC.stride(0),
        "weight": weight_KC,
        "bias": bias_C,
        "state": state.conv,
        "query_start_loc": meta.query_start_loc,
        "seq_lens": meta.seq_lens,
        "block_tables": meta.block_tables,
        "table_width": meta.block_tables.stride(0),
        "out": out_TC,
    }
    constants = {"C": channels, "K": weight_KC.shape[0], "B": state.block_size, "BLOCK": block}
    pieces = triton.cdiv(channels, block)
    decodes = meta.max_query_len <= 1
    if not decodes:
        launch(_causal_conv, (tokens, pieces), {**arguments, "num_rows": rows}, constants, **shape)
    launch(_leave_conv_state, (rows, pieces), arguments, {**constants, "CONVOLVE": decodes}, **shape)
