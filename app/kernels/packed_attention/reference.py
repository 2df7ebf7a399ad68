"""Specification of ``packed_attention`` in plain torch.

Shape suffixes beyond those of ``app.kernels.types``: M query heads of one KV head (H / G), S tokens of a sequence.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act, PackedSequences

_QUERY_BLOCK = 256
"""Queries scored at a time: bounds the score matrix."""


def packed_attention_reference(
    qkv: Tensor,
    sequences: PackedSequences,
    out: Act,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None,
) -> None:
    tokens, head_dim = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    result_THE = torch.zeros(tokens, heads, head_dim, device=qkv.device)
    bounds = sequences.cu_seqlens.tolist()
    for start, end in itertools.pairwise(bounds):
        qkv_SHE = qkv[start:end].float().view(end - start, heads + 2 * kv_heads, head_dim)
        q_HSE, k_GSE, v_GSE = qkv_SHE.transpose(0, 1).tensor_split((heads, heads + kv_heads))
        k_HSE, v_HSE = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (k_GSE, v_GSE))
        positions_S = torch.arange(end - start, device=qkv.device)
        for first in range(0, end - start, _QUERY_BLOCK):
            queries = slice(first, first + _QUERY_BLOCK)
            scores_HMS = q_HSE[:, queries].mul(scale) @ k_HSE.transpose(1, 2)
            if window is not None:
                far_MS = (positions_S[queries, None] - positions_S[None, :]).abs() > window
                scores_HMS.masked_fill_(far_MS, float("-inf"))
            attended_HME = scores_HMS.softmax(dim=-1) @ v_HSE
            result_THE[start:end][queries] = attended_HME.transpose(0, 1)
    store_act(result_THE.view(tokens, heads * head_dim), out)
