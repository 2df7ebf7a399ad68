"""Causal grouped-query attention over paged keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_kv_cache, check_rows, check_tensor, check_token_scale
from app.kernels.dispatch import fall_back, runs_triton
from app.kernels.paged_attention.cpu import paged_attention_cpu
from app.kernels.paged_attention.reference import paged_attention_reference
from app.kernels.paged_attention.scores import Scores
from app.kernels.types import Act, AttentionMetadata, LayerKVCache

__all__ = ["paged_attention"]

_OP = "paged_attention"


def paged_attention(
    q: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    out: Act,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    scratch: Tensor | None = None,
) -> None:
    """Each token attends to the tokens of its row up to and including itself.

    One call serves a step's decodes, prefills, chunks behind a cached prefix and any mixture. The step's own keys
    and values are in the pages already. A page entry at or past a row's ``seq_len`` is never read, nor one that has
    left the window of every query. Softmax and sums are fp32. Over packed pages queries and probabilities are rounded
    to bf16 before they are multiplied; on a GPU a decode's 16-bit queries of int8 keys have 15 bits of the largest
    element. A query's result depends on its own row alone, bit for bit.

    Args:
        q: [T, H, E] floating; query head h reads KV head h // (H / G).
        kv: pages [num_blocks, 2, G, B, E].
        meta: where the tokens stand.
        out: [T, H * E].
        scale: factor of the dot products.
        sliding_window: tokens a query sees, itself included; None sees all.
        softcap: scores become ``softcap * tanh(score / softcap)``, where ``score`` has its factor; None leaves them.
        sinks: [H] fp32, each head's logit of a key that has no value: it takes its share of the softmax alone.
        scratch: [T, H * E] floating, overwritten; needed where ``out`` is int8 and the pages are packed or on a GPU. It
            may be the memory of ``q``, if of one dtype.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, heads, head_dim = q.shape
    check_tensor(_OP, "q", q, (tokens, heads, head_dim), *FLOATING)
    check_kv_cache(_OP, kv, head_dim)
    if heads % kv.values.shape[2]:
        raise ValueError(f"{_OP}: {heads} query heads do not divide into {kv.values.shape[2]} KV heads")
    check_rows(_OP, meta, kv.block_size)
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"{_OP}: sliding_window is {sliding_window}, expected at least 1")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{_OP}: softcap is {softcap}, expected more than 0")
    if sinks is not None:
        check_tensor(_OP, "sinks", sinks, (heads,), torch.float32)
    scores = Scores(scale, sliding_window, softcap, sinks)
    check_act(_OP, "out", out, (tokens, heads * head_dim))
    if runs_triton(q):
        # Only a GPU needs Triton.
        from app.kernels.paged_attention.triton import paged_attention_triton

        check_token_scale(_OP, out)
        paged_attention_triton(q, kv, meta, out, scores, scratch)
    elif kv.packed:
        paged_attention_cpu(q, kv, meta, out, scores, scratch)
    else:
        fall_back(_OP, "the pages are not packed")
        paged_attention_reference(q, kv, meta, out, scores)
