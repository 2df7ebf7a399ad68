"""``paged_attention`` on a GPU.

Rows of one query (decodes) are cut along their keys, rows of more along their queries. A mixed step starts the kernels
of both, each of which leaves the other's rows alone, so a decode gives the same bits beside prefills as without them.

A query's result depends on its own row alone: tiles of keys begin at absolute positions and are walked upwards, tiles
that are hidden from a query change nothing. So a chunk gives the bits of the whole prompt, and block numbers do not
matter. Decode and prefill multiply with different instructions: they may give different bits for a query.
"""

import math

import triton
from torch import Tensor

from app.kernels.paged_attention.decode import launch_decode
from app.kernels.paged_attention.prefill import launch_prefill
from app.kernels.paged_attention.scores import Scores
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, AttentionMetadata, LayerKVCache

_LOG2E = math.log2(math.e)
"""Scores carry this factor, so that exponentials are powers of two."""


def paged_attention_triton(
    q: Tensor,
    kv: LayerKVCache,
    meta: AttentionMetadata,
    out: Act,
    scores: Scores,
    scratch: Tensor | None,
) -> None:
    """As the public ``paged_attention``; needs ``meta.split_workspace``."""
    _, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.values.shape
    target = out.values if out.scale is None else scratch
    if target is None or meta.split_workspace is None:
        raise ValueError("paged_attention: Triton needs meta.split_workspace, and a scratch where out is int8")
    pages = {
        "q": q,
        "kv": kv.values,
        "kv_scale": kv.scale,
        "query_start_loc": meta.query_start_loc,
        "seq_lens": meta.seq_lens,
        "block_tables": meta.block_tables,
        "table_width": meta.block_tables.stride(0),
        "factor": scores.scale * _LOG2E,
        "cap": None if scores.softcap is None else scores.softcap * _LOG2E,
        "sinks": scores.sinks,
        "window": scores.sliding_window,
    }
    shape = {"H": heads, "G": kv_heads, "E": head_dim, "E_BLOCK": triton.next_power_of_2(head_dim), "B": block_size}
    launch_decode(pages, shape, target, meta.split_workspace, max_seq_len=meta.max_seq_len)
    if meta.max_query_len > 1:
        launch_prefill(pages, shape, target)
    if out.scale is not None:
        quantize_triton(target, out)
