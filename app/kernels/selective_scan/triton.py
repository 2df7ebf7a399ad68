"""``selective_scan`` on a GPU: rows of one token by the recurrence itself, rows of more in chunks.

A mixed step starts the kernels of both, each of which leaves the other's rows alone. A program has some columns of a
head's state, which know nothing of each other.

In a chunk (Dao and Gu 2024, arXiv:2405.21060), with G_i the sum of its log decays up to token i, X_i its input times
its step, and S the state that it begins with::

    out_i = exp(G_i) S^T C_i + sum over j <= i of (C_i . B_j) exp(G_i - G_j) X_j + d x_i
    S = exp(G_last) S + sum over j of exp(G_last - G_j) B_j X_j^T

Chunks begin at absolute positions and, where a state is left, at that boundary: how a prompt is cut into rows moves a
result by rounding alone. Between chunks the state stands in the block that the row leaves it in, as in ``gated_delta``.

Held against a float64 formula in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it yet.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import dot_fp32, let_next_start, to_dtype, wait_for_inputs
from app.kernels.gpu.state import dot_inputs, load_piece, load_state, state_row, store_state
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import AttentionMetadata, LayerState


@triton.jit
def _steps(dt, a_log, dt_bias, least, greatest, at, head, live):
    """(step, log of the decay) of tokens; (0, 0) where a token is not live, which then changes nothing."""
    x = tl.load(dt + at, mask=live, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    step = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))
    step = tl.where(step < least, least, tl.where(step > greatest, greatest, step))
    return tl.where(live, step, 0.0), tl.where(live, -tl.exp(tl.load(a_log + head)) * step, 0.0)


@triton.jit
def _scan_token(
    xbc,
    dt,
    a_log,
    dt_bias,
    d,
    least,
    greatest,
    dt_stride,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
    G: tl.constexpr,
    H: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    DK_BLOCK: tl.constexpr,
    BV: tl.constexpr,
    B: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row, head = tl.program_id(0), tl.program_id(1)
    token, tokens, _, source, target, _, _ = state_row(query_start_loc, seq_lens, block_tables, table_width, row, B)
    row_k = tl.arange(0, DK_BLOCK)
    column = tl.program_id(2) * BV + tl.arange(0, BV)
    inside_k, inside_v = row_k < DK, column < DV
    held = (row_k < tl.where(source >= 0, DK, 0))[:, None] & inside_v[None, :]
    left = (row_k < tl.where(target >= 0, DK, 0))[:, None] & inside_v[None, :]
    page = (head * DK + row_k)[:, None] * DV + column[None, :]
    skip = tl.load(d + head)
    wait_for_inputs(PDL)
    if tokens != 1:
        return
    s = tl.load(state + source * (H * DK * DV) + page, mask=held, other=0.0)
    at = xbc + token.to(tl.int64) * (H * DV + 2 * G * DK)
    x = tl.load(at + head * DV + column, mask=inside_v, other=0.0).to(tl.float32)
    b_at = at + H * DV + head // (H // G) * DK + row_k
    b = tl.load(b_at, mask=inside_k, other=0.0).to(tl.float32)
    c = tl.load(b_at + G * DK, mask=inside_k, other=0.0).to(tl.float32)
    dt_at = token.to(tl.int64) * dt_stride + head
    step, log_decay = _steps(dt, a_log, dt_bias, least, greatest, dt_at, head, token >= 0)
    s = s * tl.exp(log_decay) + b[:, None] * (step * x)[None, :]
    y = tl.sum(s * c[:, None], axis=0) + skip * x
    out_at = out + (token.to(tl.int64) * H + head) * DV + column
    tl.store(out_at, to_dtype(y, out.dtype.element_ty), mask=inside_v)
    tl.store(state + target * (H * DK * DV) + page, s, mask=left)


@triton.jit
def _scan_chunks(
    xbc,
    dt,
    a_log,
    dt_bias,
    d,
    least,
    greatest,
    dt_stride,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
    G: tl.constexpr,
    H: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BV: tl.constexpr,
    B: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row, head = tl.program_id(0), tl.program_id(1)
    token, tokens, start, source, target, checkpoint, before = state_row(
        query_start_loc, seq_lens, block_tables, table_width, row, B
    )
    WIDTH: tl.constexpr = H * DV + 2 * G * DK
    offset = tl.arange(0, CHUNK)
    lane = tl.arange(0, PIECE)
    column = tl.program_id(2) * BV + tl.arange(0, BV)
    seen = offset[:, None] >= offset[None, :]
    skip = tl.load(d + head)
    wait_for_inputs(PDL)
    if tokens <= 1:
        return
    x_at = xbc + head * DV
    b_at = xbc + H * DV + head // (H // G) * DK
    c_at = b_at + G * DK
    held = source
    done = tl.full((), 0, tl.int32)
    while done < tokens:
        stop = tl.minimum((start + done) // CHUNK * CHUNK + CHUNK - start, tokens)
        if (checkpoint >= 0) & (done < before):
            stop = tl.minimum(stop, before)
        live = done + offset < stop
        place = token + done + offset
        mask = live[:, None] & (column < DV)[None, :]
        dt_at = place.to(tl.int64) * dt_stride + head
        step, log_decay = _steps(dt, a_log, dt_bias, least, greatest, dt_at, head, live)
        total = tl.cumsum(log_decay, axis=0)
        last = tl.sum(log_decay, axis=0)
        decay = tl.where(seen, tl.exp(tl.where(seen, total[:, None] - total[None, :], 0.0)), 0.0)

        weights = tl.zeros((CHUNK, CHUNK), tl.float32)
        y = tl.zeros((CHUNK, BV), tl.float32)
        for first in range(0, DK, PIECE):
            c = load_piece(c_at, WIDTH, place, live, first + lane, DK)
            b = load_piece(b_at, WIDTH, place, live, first + lane, DK)
            weights = dot_inputs(c, tl.trans(b), weights)
            y = dot_fp32(c.to(tl.float32), load_state(state, held, head, first + lane, column, H, DK, DV), y)
        x = tl.load(x_at + place.to(tl.int64)[:, None] * WIDTH + column[None, :], mask=mask, other=0.0).to(tl.float32)
        added = x * step[:, None]
        y = dot_fp32(weights * decay, added, y * tl.exp(total)[:, None]) + skip * x
        out_at = out + (place.to(tl.int64) * H + head)[:, None] * DV + column[None, :]
        tl.store(out_at, to_dtype(y, out.dtype.element_ty), mask=mask)

        added *= tl.exp(last - total)[:, None]
        done = stop
        boundary = tl.where(done == before, checkpoint, -1)
        tl.debug_barrier()  # all have read the state, which may be updated in place
        for first in range(0, DK, PIECE):
            b = load_piece(b_at, WIDTH, place, live, first + lane, DK).to(tl.float32)
            s = load_state(state, held, head, first + lane, column, H, DK, DV) * tl.exp(last)
            s = dot_fp32(tl.trans(b), added, s)
            store_state(state, boundary, head, first + lane, column, s, H, DK, DV)
            store_state(state, target, head, first + lane, column, s, H, DK, DV)
        tl.debug_barrier()  # and all have left it
        held = target


def selective_scan_triton(
    xbc_TC: Tensor,
    dt_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    d_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
    dt_limit: tuple[float, float],
) -> None:
    """As the public ``selective_scan``."""
    _, heads, k_dim, v_dim = state.recurrent.shape
    rows = meta.seq_lens.numel()
    arguments = {
        "xbc": xbc_TC,
        "dt": dt_TH,
        "a_log": a_log_H,
        "dt_bias": dt_bias_H,
        "d": d_H,
        "least": dt_limit[0],
        "greatest": dt_limit[1],
        "dt_stride": dt_TH.stride(0),
        "state": state.recurrent,
        "query_start_loc": meta.query_start_loc,
        "seq_lens": meta.seq_lens,
        "block_tables": meta.block_tables,
        "table_width": meta.block_tables.stride(0),
        "out": out_TN,
    }
    constants = {
        "G": (xbc_TC.shape[1] - heads * v_dim) // (2 * k_dim),
        "H": heads,
        "DK": k_dim,
        "DV": v_dim,
        "B": state.block_size,
    }
    shape = launch_shape("selective_scan_token", k_dim=k_dim)
    columns = {"BV": shape.pop("BV")}
    whole = {"DK_BLOCK": triton.next_power_of_2(k_dim)}
    grid = (rows, heads, triton.cdiv(v_dim, columns["BV"]))
    launch(_scan_token, grid, arguments, {**constants, **columns, **whole}, **shape)
    if meta.max_query_len > 1:
        shape = launch_shape("selective_scan_chunks", k_dim=k_dim)
        tile = {name: shape.pop(name) for name in ("BV", "CHUNK", "PIECE")}
        grid = (rows, heads, triton.cdiv(v_dim, tile["BV"]))
        launch(_scan_chunks, grid, arguments, {**constants, **tile}, **shape)
