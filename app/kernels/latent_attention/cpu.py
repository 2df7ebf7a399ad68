"""Binding of the native ``latent_attention``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import AttentionMetadata, LayerLatents

_OP = "latent_attention"
MAX_WIDTH = 1024
"""Elements of a latent: a tile of lines as wide still fits a thread's scratch."""


def latent_attention_cpu(
    q_THW: Tensor, pages: LayerLatents, meta: AttentionMetadata, out_THC: Tensor, scale: float
) -> None:
    tokens, heads, width = q_THW.shape
    if width > MAX_WIDTH:
        raise ValueError(f"{_OP}: latents are of {width} elements, native kernels take up to {MAX_WIDTH}")
    call = Call(
        "latent_attention",
        Dim.TOKENS,
        q=q_THW,
        pages=pages.values,
        query_start_loc=meta.query_start_loc,
        seq_lens=meta.seq_lens,
        block_tables=meta.block_tables,
        out=out_THC,
        dtype=dtype_code(q_THW),
        page_dtype=dtype_code(pages.values),
        out_dtype=dtype_code(out_THC),
        heads=heads,
        width=width,
        rank=out_THC.shape[2],
        block_size=pages.block_size,
        block_table_stride=meta.block_tables.shape[1],
        scale=scale,
        reserved=0,
    )
    emit(
        [call],
        tokens=tokens,
        rows=meta.seq_lens.numel(),
        max_seq_len=meta.max_seq_len,
        max_query_len=meta.max_query_len,
    )
