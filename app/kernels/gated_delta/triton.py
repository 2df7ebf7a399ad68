"""``gated_delta`` on a GPU: rows of one token by the rule itself, rows of more in chunks.

A mixed step starts the kernels of both, each of which leaves the other's rows alone. A program has some columns of a
value head's state, which know nothing of each other.

In a chunk (Yang et al. 2024, arXiv:2412.06464), with G_i the sum of its log decays up to token i and S the state that
it begins with::

    A[i, j] = beta_i (k_i . k_j) exp(G_i - G_j)  for j < i
    U = (I + A)^-1 diag(beta) (V - diag(exp G) K S)
    out_i = exp(G_i) S^T q_i + sum over j <= i of (q_i . k_j) exp(G_i - G_j) U_j
    S = exp(G_last) S + sum over j of exp(G_last - G_j) k_j U_j^T

Chunks begin at absolute positions and, where a state is left, at that boundary: how a prompt is cut into rows moves a
result by rounding alone.

Between chunks the state stands in the block that the row leaves it in, which a row of several tokens always has: with
chunks of 32 tokens and pieces of keys at a time nothing spills, while a state or a chunk of 64 in registers does.

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
def _gates(b, a, a_log, dt_bias, at, head, live):
    """(beta, log of the decay) of tokens; (0, 0) where a token is not live, which then changes nothing."""
    beta = tl.load(b + at, mask=live, other=0.0).to(tl.float32)
    x = tl.load(a + at, mask=live, other=0.0).to(tl.float32) + tl.load(dt_bias + head)
    softplus = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))
    log_decay = -tl.exp(tl.load(a_log + head)) * softplus
    return tl.where(live, 1.0 / (1.0 + tl.exp(-beta)), 0.0), tl.where(live, log_decay, 0.0)


@triton.jit
def _recurrent(
    qkv,
    b,
    a,
    a_log,
    dt_bias,
    gate_stride,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
    HK: tl.constexpr,
    HV: tl.constexpr,
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
    wait_for_inputs(PDL)
    if tokens != 1:
        return
    s = tl.load(state + source * (HV * DK * DV) + page, mask=held, other=0.0)
    q_at = qkv + token.to(tl.int64) * (2 * HK * DK + HV * DV) + head // (HV // HK) * DK + row_k
    q = tl.load(q_at, mask=inside_k, other=0.0).to(tl.float32)
    k = tl.load(q_at + HK * DK, mask=inside_k, other=0.0).to(tl.float32)
    v_at = qkv + token.to(tl.int64) * (2 * HK * DK + HV * DV) + 2 * HK * DK + head * DV + column
    v = tl.load(v_at, mask=inside_v, other=0.0).to(tl.float32)
    q *= 1.0 / (tl.sqrt_rn(tl.sum(q * q, axis=0) + 1e-6) * tl.sqrt_rn(DK * 1.0))
    k *= 1.0 / tl.sqrt_rn(tl.sum(k * k, axis=0) + 1e-6)
    beta, log_decay = _gates(b, a, a_log, dt_bias, token.to(tl.int64) * gate_stride + head, head, token >= 0)
    s *= tl.exp(log_decay)
    delta = beta * (v - tl.sum(s * k[:, None], axis=0))
    s += k[:, None] * delta[None, :]
    y = tl.sum(s * q[:, None], axis=0)
    out_at = out + (token.to(tl.int64) * HV + head) * DV + column
    tl.store(out_at, to_dtype(y, out.dtype.element_ty), mask=inside_v)
    tl.store(state + target * (HV * DK * DV) + page, s, mask=left)


@triton.jit
def _inverse(lower, CHUNK: tl.constexpr, LEVELS: tl.constexpr):
    """``(I + lower)^-1`` of a strictly lower triangular tile.

    Diagonal blocks are inverted first, then two and two: with D those of a size and L what lies between two of them,
    the inverse of the block of both is D - D L D, in which nothing grows that the inverse does not hold.
    """
    i = tl.arange(0, CHUNK)[:, None]
    j = tl.arange(0, CHUNK)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0) - tl.where(i // 2 == j // 2, lower, 0.0)
    for level in range(1, LEVELS):
        between = (i >> (level + 1) == j >> (level + 1)) & (i >> level != j >> level)
        step = dot_fp32(inverse, tl.where(between, lower, 0.0), tl.zeros((CHUNK, CHUNK), tl.float32))
        inverse -= dot_fp32(step, inverse, tl.zeros((CHUNK, CHUNK), tl.float32))
    return inverse


@triton.jit
def _chunked(
    qkv,
    b,
    a,
    a_log,
    dt_bias,
    gate_stride,
    state,
    query_start_loc,
    seq_lens,
    block_tables,
    table_width,
    out,
    HK: tl.constexpr,
    HV: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BV: tl.constexpr,
    B: tl.constexpr,
    CHUNK: tl.constexpr,
    LEVELS: tl.constexpr,
    PIECE: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row, head = tl.program_id(0), tl.program_id(1)
    token, tokens, start, source, target, checkpoint, before = state_row(
        query_start_loc, seq_lens, block_tables, table_width, row, B
    )
    WIDTH: tl.constexpr = 2 * HK * DK + HV * DV
    offset = tl.arange(0, CHUNK)
    lane = tl.arange(0, PIECE)
    column = tl.program_id(2) * BV + tl.arange(0, BV)
    seen = offset[:, None] >= offset[None, :]
    wait_for_inputs(PDL)
    if tokens <= 1:
        return
    q_at = qkv + head // (HV // HK) * DK
    k_at = q_at + HK * DK
    v_at = qkv + 2 * HK * DK + head * DV
    held = source
    done = tl.full((), 0, tl.int32)
    while done < tokens:
        stop = tl.minimum((start + done) // CHUNK * CHUNK + CHUNK - start, tokens)
        if (checkpoint >= 0) & (done < before):
            stop = tl.minimum(stop, before)
        live = done + offset < stop
        place = token + done + offset
        mask = live[:, None] & (column < DV)[None, :]
        beta, log_decay = _gates(b, a, a_log, dt_bias, place.to(tl.int64) * gate_stride + head, head, live)
        total = tl.cumsum(log_decay, axis=0)
        last = tl.sum(log_decay, axis=0)
        decay = tl.where(seen, tl.exp(tl.where(seen, total[:, None] - total[None, :], 0.0)), 0.0)

        squares = tl.zeros((CHUNK,), tl.float32)
        between = tl.zeros((CHUNK, CHUNK), tl.float32)
        for first in range(0, DK, PIECE):
            k = load_piece(k_at, WIDTH, place, live, first + lane, DK)
            squares += tl.sum(k.to(tl.float32) * k.to(tl.float32), axis=1)
            between = dot_inputs(k, tl.trans(k), between)
        k_scale = 1.0 / tl.sqrt_rn(squares + 1e-6)
        between *= decay * (beta * k_scale)[:, None] * k_scale[None, :]
        inverse = _inverse(tl.where(offset[:, None] > offset[None, :], between, 0.0), CHUNK, LEVELS)

        answer = tl.zeros((CHUNK, BV), tl.float32)
        for first in range(0, DK, PIECE):
            k = load_piece(k_at, WIDTH, place, live, first + lane, DK).to(tl.float32)
            answer = dot_fp32(k, load_state(state, held, head, first + lane, column, HV, DK, DV), answer)
        v = tl.load(v_at + place.to(tl.int64)[:, None] * WIDTH + column[None, :], mask=mask, other=0.0).to(tl.float32)
        change = beta[:, None] * (v - (tl.exp(total) * k_scale)[:, None] * answer)
        change = dot_fp32(inverse, change, tl.zeros((CHUNK, BV), tl.float32))

        squares = tl.zeros((CHUNK,), tl.float32)
        weights = tl.zeros((CHUNK, CHUNK), tl.float32)
        y = tl.zeros((CHUNK, BV), tl.float32)
        for first in range(0, DK, PIECE):
            q = load_piece(q_at, WIDTH, place, live, first + lane, DK)
            k = load_piece(k_at, WIDTH, place, live, first + lane, DK)
            squares += tl.sum(q.to(tl.float32) * q.to(tl.float32), axis=1)
            weights = dot_inputs(q, tl.trans(k), weights)
            y = dot_fp32(q.to(tl.float32), load_state(state, held, head, first + lane, column, HV, DK, DV), y)
        q_scale = 1.0 / (tl.sqrt_rn(squares + 1e-6) * tl.sqrt_rn(DK * 1.0))
        y = dot_fp32(weights * decay * k_scale[None, :], change, y * tl.exp(total)[:, None]) * q_scale[:, None]
        out_at = out + (place.to(tl.int64) * HV + head)[:, None] * DV + column[None, :]
        tl.store(out_at, to_dtype(y, out.dtype.element_ty), mask=mask)

        change *= (tl.exp(last - total) * k_scale)[:, None]
        done = stop
        boundary = tl.where(done == before, checkpoint, -1)
        tl.debug_barrier()  # all have read the state, which may be updated in place
        for first in range(0, DK, PIECE):
            k = load_piece(k_at, WIDTH, place, live, first + lane, DK).to(tl.float32)
            s = load_state(state, held, head, first + lane, column, HV, DK, DV) * tl.exp(last)
            s = dot_fp32(tl.trans(k), change, s)
            store_state(state, boundary, head, first + lane, column, s, HV, DK, DV)
            store_state(state, target, head, first + lane, column, s, HV, DK, DV)
        tl.debug_barrier()  # and all have left it
        held = target


def gated_delta_triton(
    qkv_TC: Tensor,
    b_TH: Tensor,
    a_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
) -> None:
    """As the public ``gated_delta``."""
    _, heads, k_dim, v_dim = state.recurrent.shape
    rows = meta.seq_lens.numel()
    arguments = {
        "qkv": qkv_TC,
        "b": b_TH,
        "a": a_TH,
        "a_log": a_log_H,
        "dt_bias": dt_bias_H,
        "gate_stride": b_TH.stride(0),
        "state": state.recurrent,
        "query_start_loc": meta.query_start_loc,
        "seq_lens": meta.seq_lens,
        "block_tables": meta.block_tables,
        "table_width": meta.block_tables.stride(0),
        "out": out_TN,
    }
    constants = {
        "HK": (qkv_TC.shape[1] - heads * v_dim) // (2 * k_dim),
        "HV": heads,
        "DK": k_dim,
        "DV": v_dim,
        "B": state.block_size,
    }
    shape = launch_shape("gated_delta_recurrent", k_dim=k_dim)
    columns = {"BV": shape.pop("BV")}
    whole = {"DK_BLOCK": triton.next_power_of_2(k_dim)}
    grid = (rows, heads, triton.cdiv(v_dim, columns["BV"]))
    launch(_recurrent, grid, arguments, {**constants, **columns, **whole}, **shape)
    if meta.max_query_len > 1:
        shape = launch_shape("gated_delta_chunked", k_dim=k_dim)
        tile = {name: shape.pop(name) for name in ("BV", "CHUNK", "PIECE")}
        grid = (rows, heads, triton.cdiv(v_dim, tile["BV"]))
        levels = {"LEVELS": tile["CHUNK"].bit_length() - 1}
        launch(_chunked, grid, arguments, {**constants, **tile, **levels}, **shape)
