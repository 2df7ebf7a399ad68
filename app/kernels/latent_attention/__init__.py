"""Causal attention over paged latents, which serve all heads as keys and as values."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_latents, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.latent_attention.cpu import latent_attention_cpu
from app.kernels.latent_attention.reference import latent_attention_reference
from app.kernels.types import AttentionMetadata, LayerLatents

__all__ = ["latent_attention"]

_OP = "latent_attention"


def latent_attention(
    q_THW: Tensor, pages: LayerLatents, meta: AttentionMetadata, out_THC: Tensor, *, scale: float
) -> None:
    """Each token attends to the tokens of its row up to and including itself: scores are products of its queries with
    whole latents, the result is a mean of their first C elements.

    This is multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1) in the form in which each
    head's key matrix is multiplied to its query, and its value matrix to the result, instead of both to every latent.

    One call serves a step's decodes, prefills, chunks behind a cached prefix and any mixture. The step's own latents
    are in the pages already. A page entry at or past a row's ``seq_len`` is never read. Softmax and sums are fp32,
    natively products too. A query's result hangs on its own row alone, bit for bit.

    Args:
        q_THW: [T, H, C + R] floating.
        pages: [num_blocks, B, C + R] floating.
        meta: where the tokens stand.
        out_THC: [T, H, C] floating.
        scale: factor of the products.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, heads, width = q_THW.shape
    check_tensor(_OP, "q", q_THW, (tokens, heads, width), *FLOATING)
    check_latents(_OP, pages, width)
    rank = out_THC.shape[-1]
    check_tensor(_OP, "out", out_THC, (tokens, heads, rank), *FLOATING)
    if rank > width:
        raise ValueError(f"{_OP}: out has vectors of {rank}, latents are of {width}")
    rows = meta.seq_lens.numel()
    check_tensor(_OP, "meta.seq_lens", meta.seq_lens, (rows,), torch.int32)
    check_tensor(_OP, "meta.query_start_loc", meta.query_start_loc, (rows + 1,), torch.int32)
    check_tensor(_OP, "meta.block_tables", meta.block_tables, (rows, meta.block_tables.shape[-1]), torch.int32)
    if meta.block_tables.shape[1] * pages.block_size < meta.max_seq_len:
        raise ValueError(f"{_OP}: meta.block_tables is too narrow for {meta.max_seq_len} tokens")
    if runs_triton(q_THW):
        from app.kernels.latent_attention.triton import latent_attention_triton  # only a GPU needs Triton

        latent_attention_triton(q_THW, pages, meta, out_THC, scale)
    elif native(_OP, q_THW, pages.values, out_THC):
        latent_attention_cpu(q_THW, pages, meta, out_THC, scale)
    else:
        latent_attention_reference(q_THW, pages, meta, out_THC, scale)
