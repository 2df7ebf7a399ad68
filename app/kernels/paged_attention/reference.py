"""Specification of ``paged_attention`` in plain torch.

Shape suffixes beyond those of ``app.kernels.types``: M query heads of one KV head (H / G), S attended positions.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.paged_attention.scores import Scores
from app.kernels.types import Act, AttentionMetadata, LayerKVCache

_QUERY_BLOCK = 64
"""Queries of a prefill scored at a time: bounds the score matrix and skips most of the causal triangle."""

_POSITIONS_AT_ONCE = 4096
"""Positions of decode rows gathered at a time, which bounds the copy of their keys and values."""


def paged_attention_reference(
    q: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    out: Act,
    scores: Scores,
) -> None:
    tokens, heads, head_dim = q.shape
    kv_heads = kv.values.shape[2]
    q_TGME = q.float().mul(scores.scale).view(tokens, kv_heads, heads // kv_heads, head_dim)
    out_TGME = torch.empty_like(q_TGME)
    starts, seq_lens = meta.query_start_loc.tolist(), meta.seq_lens.tolist()
    decodes: dict[int, list[int]] = defaultdict(list)
    for row, seq_len in enumerate(seq_lens):
        query_len = starts[row + 1] - starts[row]
        if query_len == 1:
            decodes[_padded_length(seq_len, scores.sliding_window)].append(row)
        elif query_len > 1:
            queries = slice(starts[row], starts[row + 1])
            table = meta.block_tables[row : row + 1]
            _prefill(q_TGME[queries], kv, table, seq_len, scores, out_TGME[queries])
    for length, rows in decodes.items():
        size = max(1, _POSITIONS_AT_ONCE // length)
        for start in range(0, len(rows), size):
            _decode(q_TGME, kv, meta, rows[start : start + size], length, scores, out_TGME)
    store_act(out_TGME.view(tokens, heads * head_dim), out)


def _padded_length(seq_len: int, sliding_window: int | None) -> int:
    """Attended positions, up to the next quarter of an octave (64 at least).

    It depends on the row alone, so that other rows do not change how a row is summed.
    """
    attended = seq_len if sliding_window is None else min(seq_len, sliding_window)
    step = max(64, 1 << (attended - 1).bit_length() >> 2)
    return -(-attended // step) * step


def _decode(
    q_TGME: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    rows: list[int],
    length: int,
    scores: Scores,
    out_TGME: Tensor,
) -> None:
    """Rows of one query each, ``length`` positions wide; the excess reads the row's own last token, and is masked."""
    rows_R = torch.tensor(rows, device=q_TGME.device)
    queries_R = meta.query_start_loc.index_select(0, rows_R)
    seq_lens_R1 = meta.seq_lens.index_select(0, rows_R).long().unsqueeze(1)
    positions_RS = torch.arange(length, device=q_TGME.device).expand(len(rows), length)
    if scores.sliding_window is not None:
        positions_RS = positions_RS + (seq_lens_R1 - scores.sliding_window).clamp(min=0)
    hidden_RS = positions_RS >= seq_lens_R1
    positions_RS = torch.minimum(positions_RS, seq_lens_R1 - 1)
    k_RGSE, v_RGSE = _gather(kv, meta.block_tables.index_select(0, rows_R), positions_RS)
    scores_RGMS = torch.matmul(q_TGME.index_select(0, queries_R), k_RGSE.transpose(-1, -2))
    scores_RGMS = _capped(scores_RGMS, scores).masked_fill_(hidden_RS[:, None, None, :], float("-inf"))
    probs_RGMS = _probabilities(scores_RGMS.unsqueeze(-2), scores.sinks).squeeze(-2)
    out_TGME[queries_R] = torch.matmul(probs_RGMS, v_RGSE)


def _prefill(
    q_TGME: Tensor,
    kv: LayerKVCache,
    table: Tensor,
    seq_len: int,
    scores: Scores,
    out_TGME: Tensor,
) -> None:
    """One row: its queries are the last of ``seq_len`` positions. ``table`` is [1, max_blocks]."""
    tokens, kv_heads, group, head_dim = q_TGME.shape
    window = seq_len if scores.sliding_window is None else scores.sliding_window
    prefix = seq_len - tokens
    first = max(0, prefix - window + 1)
    positions_S = torch.arange(first, seq_len, device=q_TGME.device)
    k_GSE, v_GSE = (x.squeeze(0) for x in _gather(kv, table, positions_S.unsqueeze(0)))
    for start in range(0, tokens, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, tokens)
        queries_T = positions_S[prefix + start - first : prefix + end - first]
        keys = slice(max(first, prefix + start - window + 1) - first, prefix + end - first)
        distance_TS = queries_T[:, None] - positions_S[None, keys]
        hidden_TS = (distance_TS < 0) | (distance_TS >= window)
        q_GXE = q_TGME[start:end].permute(1, 2, 0, 3).reshape(kv_heads, group * (end - start), head_dim)
        scores_GXS = _capped(torch.matmul(q_GXE, k_GSE[:, keys].transpose(-1, -2)), scores)
        scores_GMTS = scores_GXS.view(kv_heads, group, end - start, -1).masked_fill_(hidden_TS, float("-inf"))
        probs_GXS = _probabilities(scores_GMTS, scores.sinks).reshape(scores_GXS.shape)
        out_GXE = torch.matmul(probs_GXS, v_GSE[:, keys])
        out_TGME[start:end] = out_GXE.view(kv_heads, group, end - start, head_dim).permute(2, 0, 1, 3)


def _capped(scores: Tensor, how: Scores) -> Tensor:
    return scores if how.softcap is None else (scores / how.softcap).tanh_().mul_(how.softcap)


def _probabilities(scores_GMTS: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over S of scores [..., G, M, T, S], to which each head's sink belongs as well."""
    if sinks is None:
        return scores_GMTS.softmax(dim=-1)
    sinks_GMT1 = sinks.view(*scores_GMTS.shape[-4:-2], 1, 1).expand(*scores_GMTS.shape[:-1], 1)
    return torch.cat((scores_GMTS, sinks_GMT1), dim=-1).softmax(dim=-1)[..., :-1]


def _gather(kv: LayerKVCache, tables_R: Tensor, positions_RS: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [R, G, S, E] in fp32 of each row's positions."""
    _, _, kv_heads, block_size, _ = kv.values.shape
    blocks_RS = tables_R.gather(1, positions_RS // block_size).long()
    heads_G1 = torch.arange(kv_heads, device=tables_R.device).unsqueeze(1) * block_size
    key_rows = (blocks_RS * (2 * kv_heads * block_size) + positions_RS % block_size).unsqueeze(1) + heads_G1
    return _take(kv, key_rows), _take(kv, key_rows + kv_heads * block_size)


def _take(kv: LayerKVCache, rows_RGS: Tensor) -> Tensor:
    """Head vectors by their row in the pages seen as [-1, E]."""
    flat = rows_RGS.reshape(-1)
    vectors = kv.values.view(-1, kv.values.shape[-1]).index_select(0, flat).float()
    if kv.scale is not None:
        vectors *= kv.scale.view(-1).index_select(0, flat).float().unsqueeze(1)
    return vectors.view(*rows_RGS.shape, -1)
