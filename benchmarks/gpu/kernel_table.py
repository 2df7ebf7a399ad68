"""Kernels at a model's shapes, in time and as a share of what the device allows.

The share is that of the nearer limit: bytes over the measured bandwidth, or operations over the measured rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from app.kernels import dispatch
from app.kernels.add_norm import add_norm
from app.kernels.linear import linear
from app.kernels.paged_attention import paged_attention
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerKVCache, LinearWeight, SplitKWorkspace
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.stage import Run, Stage, ceilings, copies_past_l2, seconds

_BLOCK = 16
_MOST_COPIES = 64


class Table:
    """Measures calls and emits their rows."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._measured = ceilings(stage.args.output)

    def row(self, name: str, make: Callable[[], Run], nbytes: int, operations: int, *, int8: bool = False) -> None:
        """Times calls of one op on operands of their own.

        Args:
            make: operands, and a call on them.
            nbytes: that a call has to move.
            operations: of its products.
        """
        copies = min(_MOST_COPIES, copies_past_l2(nbytes, self._stage.device))
        taken = seconds([make() for _ in range(copies)], self._stage.device)
        row: dict[str, object] = {"kernel": name, "us": round(taken["p50_s"] * 1e6, 2), **taken}
        row |= {"gb_per_s": round(nbytes / taken["p50_s"] / 1e9, 1)}
        if self._measured:
            bandwidth = max(self._measured["read_gb_per_s"], self._measured["copy_gb_per_s"]) * 1e9
            bf16 = self._measured["bf16_tflop_per_s"]
            rate = self._measured.get("int8_top_per_s", bf16) if int8 else bf16
            limit = max(nbytes / bandwidth, operations / (rate * 1e12))
            row["share_of_limit"] = round(limit / taken["p50_s"], 3)
        self._stage.emit(row)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, default=1024)


def main() -> None:
    """Products, attention and norms of one layer."""
    stage = Stage("kernel_table", __doc__, _options)
    dispatch.configure(dispatch.Mode.INTERPRET if stage.device.type == "cpu" else dispatch.Mode.AUTO, threads=1)
    shape, table = MODELS[stage.args.model], Table(stage)
    for batch in stage.args.batches:
        for int8 in (False, True):
            _products(table, stage.device, shape, batch, int8=int8)
            _attention(table, stage.device, shape, batch, stage.args.context, int8=int8)
        _norm(table, stage.device, shape["hidden_size"], batch)


def _products(table: Table, device: torch.device, shape: dict[str, int], batch: int, *, int8: bool) -> None:
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    qkv = (shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]) * shape["head_dim"]
    workspace = SplitKWorkspace.new(device)
    for name, n, k in (("qkv", qkv, width), ("down", width, inner)):

        def make(n: int = n, k: int = k) -> Run:
            out = Act(torch.empty(batch, n, dtype=torch.bfloat16, device=device))
            if int8:
                values = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
                scale = torch.rand(n, device=device)
                weight = LinearWeight(values, scale, None, ActFormat.INT8_TOKEN, workspace)
                x = torch.randint(-127, 128, (batch, k), dtype=torch.int8, device=device)
                act = Act(x, torch.rand(batch, 1, device=device))
            else:
                weight = LinearWeight(torch.randn(n, k, device=device).bfloat16())
                act = Act(torch.randn(batch, k, device=device).bfloat16())
            return lambda: linear(act, weight, out)

        nbytes = n * k * (1 if int8 else 2) + batch * (k * (1 if int8 else 2) + 2 * n)
        kind = "W8A8" if int8 else "bf16"
        table.row(f"linear {kind} {name} {batch}", make, nbytes, 2 * batch * n * k, int8=int8)


def _attention(
    table: Table, device: torch.device, shape: dict[str, int], batch: int, context: int, *, int8: bool
) -> None:
    heads, kv_heads, width = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
    blocks = batch * -(-context // _BLOCK)
    pages = (blocks, 2, kv_heads, _BLOCK, width)
    workspace = new_split_workspace(batch, heads, width, device)

    def make() -> Run:
        if int8:
            values = torch.randint(-127, 128, pages, dtype=torch.int8, device=device)
            cache = LayerKVCache(values, torch.full(pages[:4], 0.01, dtype=torch.float16, device=device))
        else:
            cache = LayerKVCache(torch.randn(pages, device=device).bfloat16())
        meta = AttentionMetadata(
            query_start_loc=torch.arange(batch + 1, dtype=torch.int32, device=device),
            seq_lens=torch.full((batch,), context, dtype=torch.int32, device=device),
            block_tables=torch.randperm(blocks, device=device).int().view(batch, -1),
            slot_mapping=torch.zeros(batch, dtype=torch.int64, device=device),
            max_query_len=1,
            max_seq_len=context,
            split_workspace=workspace,
        )
        q = torch.randn(batch, heads, width, device=device).bfloat16()
        out = Act(torch.empty(batch, heads * width, dtype=torch.bfloat16, device=device))
        return lambda: paged_attention(q, cache, meta, out, scale=width**-0.5)

    nbytes = batch * context * 2 * kv_heads * (width + 2 if int8 else 2 * width)
    operations = 4 * batch * heads * context * width
    table.row(f"paged_attention {'int8' if int8 else 'bf16'} {batch}x{context}", make, nbytes, operations)


def _norm(table: Table, device: torch.device, width: int, batch: int) -> None:
    def make() -> Run:
        x, residual, out = (torch.randn(batch, width, device=device).bfloat16() for _ in range(3))
        weight = torch.ones(width, dtype=torch.bfloat16, device=device)
        return lambda: add_norm(x, weight, 1e-6, Act(out), residual=residual)

    table.row(f"add_norm {batch}x{width}", make, 8 * batch * width, 0)


if __name__ == "__main__":
    main()
