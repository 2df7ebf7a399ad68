"""Specification of ``latent_attention`` in plain torch. S attended positions."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.types import AttentionMetadata, LayerLatents

_QUERY_BLOCK = 64
"""Queries scored at a time: bounds the score matrix and skips most of the causal triangle."""


def latent_attention_reference(
    q_THW: Tensor, pages: LayerLatents, meta: AttentionMetadata, out_THC: Tensor, scale: float
) -> None:
    starts, size = meta.query_start_loc.tolist(), pages.block_size
    for row, seq_len in enumerate(meta.seq_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        positions_S = torch.arange(seq_len, device=q_THW.device)
        blocks_S = meta.block_tables[row].index_select(0, positions_S // size).long()
        latents_SW = pages.values[blocks_S, positions_S % size].float()
        for first in range(begin, end, _QUERY_BLOCK):
            last = min(first + _QUERY_BLOCK, end)
            seen = seq_len - (end - last)
            hidden_TS = positions_S[seen - (last - first) : seen, None] < positions_S[None, :seen]
            out_THC[first:last] = _attend(q_THW[first:last], latents_SW[:seen], hidden_TS, scale, out_THC.shape[2])


def _attend(q_THW: Tensor, latents_SW: Tensor, hidden_TS: Tensor, scale: float, rank: int) -> Tensor:
    scores_THS = torch.matmul(q_THW.float() * scale, latents_SW.t()).masked_fill_(hidden_TS[:, None], float("-inf"))
    return torch.matmul(scores_THS.softmax(dim=-1), latents_SW[:, :rank])
