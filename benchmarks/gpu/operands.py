"""Operands of single ops at a model's shapes, and a call on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.linear import Activation, linear, scratch_width
from app.kernels.paged_attention import paged_attention
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.quantize.triton import quantize_triton
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerKVCache, LinearWeight, SplitKWorkspace
from benchmarks.gpu.stage import Run

BLOCK = 16


class OpCall(NamedTuple):
    """A call on operands of its own."""

    run: Run
    out: Tensor
    """Tensor that the call writes."""
    nbytes: int
    """Bytes of what it mostly reads: a weight, or pages."""


def product(
    device: torch.device, kind: str, m: int, n: int, k: int, workspace: SplitKWorkspace, *, silu_mul: bool = False
) -> OpCall:
    """A linear layer of ``n`` outputs.

    Args:
        kind: ``bf16``, ``w8a16`` or ``w8a8``.
        silu_mul: ``n`` counts gate and up.
    """
    if kind == "bf16":
        weight = LinearWeight((torch.randn(n, k, device=device) * 0.02).bfloat16(), workspace=workspace)
    else:
        values = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
        fmt = ActFormat.INT8_TOKEN if kind == "w8a8" else ActFormat.FLOAT
        weight = LinearWeight(values, torch.rand(n, device=device) * 1e-3, None, fmt, workspace)
    if kind == "w8a8":
        ints = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device)
        act = Act(ints, torch.rand(m, 1, device=device) * 1e-2)
    else:
        act = Act(torch.randn(m, k, device=device).bfloat16())
    activation = Activation.SILU_MUL if silu_mul else Activation.NONE
    out = torch.empty(m, n // 2 if silu_mul else n, dtype=torch.bfloat16, device=device)
    width = scratch_width(weight, ActFormat.FLOAT, activation)
    scratch = torch.empty(m, width, dtype=torch.bfloat16, device=device) if width else None
    return OpCall(
        lambda: linear(act, weight, Act(out), activation=activation, scratch=scratch), out, weight.values.nbytes
    )


def head(device: torch.device, m: int, vocab_size: int, k: int) -> OpCall:
    """Logits of ``m`` tokens."""
    hidden = torch.randn(m, k, device=device).bfloat16()
    weight = LinearWeight((torch.randn(vocab_size, k, device=device) * 0.02).bfloat16())
    out, rows = torch.empty(m, vocab_size, device=device), torch.arange(m, device=device)
    return OpCall(lambda: gather_lm_head(hidden, rows, weight, out), out, weight.values.nbytes)


def quantized(device: torch.device, rows: int, width: int) -> OpCall:
    """Int8 of rows of activations."""
    x = torch.randn(rows, width, device=device).bfloat16()
    out = Act(torch.empty_like(x, dtype=torch.int8), torch.empty(rows, 1, device=device))
    return OpCall(lambda: quantize_triton(x, out), out.values, x.nbytes)


def attention(
    device: torch.device, shape: dict[str, Any], rows: int, context: int, queries: int, *, int8: bool
) -> OpCall:
    """The last ``queries`` tokens of ``rows`` sequences of ``context`` tokens against their pages."""
    heads, kv_heads, width = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
    blocks = rows * -(-context // BLOCK)
    pages = (blocks, 2, kv_heads, BLOCK, width)
    if int8:
        values = torch.randint(-127, 128, pages, dtype=torch.int8, device=device)
        cache = LayerKVCache(values, torch.full(pages[:4], 0.01, dtype=torch.float16, device=device))
    else:
        cache = LayerKVCache(torch.randn(pages, device=device).bfloat16())
    meta = AttentionMetadata(
        query_start_loc=torch.arange(rows + 1, dtype=torch.int32, device=device) * queries,
        seq_lens=torch.full((rows,), context, dtype=torch.int32, device=device),
        block_tables=torch.randperm(blocks, device=device).int().view(rows, -1),
        slot_mapping=torch.zeros(rows * queries, dtype=torch.int64, device=device),
        max_query_len=queries,
        max_seq_len=context,
        split_workspace=new_split_workspace(rows, heads, kv_heads, width, device),
    )
    q = torch.randn(rows * queries, heads, width, device=device).bfloat16()
    out = torch.empty(rows * queries, heads * width, dtype=torch.bfloat16, device=device)
    return OpCall(lambda: paged_attention(q, cache, meta, Act(out), scale=width**-0.5), out, cache.values.nbytes)
