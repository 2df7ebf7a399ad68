"""Kernels at a model's shapes, in time and as a share of what the device allows.

The share is that of the nearer limit: bytes over the measured bandwidth, or operations over the measured rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from app.kernels import dispatch
from app.kernels.add_norm import add_norm
from app.kernels.sample import SampleParams, sample
from app.kernels.sample.workspace import new_sample_workspace
from app.kernels.types import Act, SplitKWorkspace
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.operands import attention, product, quantized
from benchmarks.gpu.stage import Run, Stage, ceilings, copies_past_l2, seconds

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
            nbytes: bytes that a call has to move.
            operations: operations of its products.
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
    """Products, attention and norms of one layer, and sampling."""
    stage = Stage("kernel_table", __doc__, _options)
    dispatch.configure(dispatch.Mode.INTERPRET if stage.device.type == "cpu" else dispatch.Mode.AUTO, threads=1)
    shape, table = MODELS[stage.args.model], Table(stage)
    for batch in stage.args.batches:
        for int8 in (False, True):
            _products(table, stage.device, shape, batch, int8=int8)
            _attention(table, stage.device, shape, batch, stage.args.context, int8=int8)
        _norm(table, stage.device, shape["hidden_size"], batch)
        for width in (shape["hidden_size"], shape["intermediate_size"]):
            _quantize(table, stage.device, width, batch)
        _sampling(table, stage.device, shape["vocab_size"], batch)


def _products(table: Table, device: torch.device, shape: dict[str, int], batch: int, *, int8: bool) -> None:
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    qkv = (shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]) * shape["head_dim"]
    workspace, kind = SplitKWorkspace.new(device), "w8a8" if int8 else "bf16"
    for name, n, k in (("qkv", qkv, width), ("gate_up", 2 * inner, width), ("down", width, inner)):
        silu_mul = name == "gate_up"

        def make(n: int = n, k: int = k, silu_mul: bool = silu_mul) -> Run:
            return product(device, kind, batch, n, k, workspace, silu_mul=silu_mul).run

        nbytes = n * k * (1 if int8 else 2) + batch * (k * (1 if int8 else 2) + 2 * n)
        table.row(f"linear {kind} {name} {batch}", make, nbytes, 2 * batch * n * k, int8=int8)


def _attention(
    table: Table, device: torch.device, shape: dict[str, int], batch: int, context: int, *, int8: bool
) -> None:
    heads, kv_heads, width = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
    nbytes = batch * context * 2 * kv_heads * (width + 2 if int8 else 2 * width)
    table.row(
        f"paged_attention {'int8' if int8 else 'bf16'} {batch}x{context}",
        lambda: attention(device, shape, batch, context, 1, int8=int8).run,
        nbytes,
        4 * batch * heads * context * width,
    )


def _norm(table: Table, device: torch.device, width: int, batch: int) -> None:
    def make() -> Run:
        x, residual, out = (torch.randn(batch, width, device=device).bfloat16() for _ in range(3))
        weight = torch.ones(width, dtype=torch.bfloat16, device=device)
        return lambda: add_norm(x, weight, 1e-6, Act(out), residual=residual)

    table.row(f"add_norm {batch}x{width}", make, 8 * batch * width, 0)


def _quantize(table: Table, device: torch.device, width: int, batch: int) -> None:
    table.row(f"quantize {batch}x{width}", lambda: quantized(device, batch, width).run, 3 * batch * width, 0)


def _sampling(table: Table, device: torch.device, vocab_size: int, batch: int) -> None:
    """Sampling of steep rows, as models give them (a few hundred tokens have 0.9 of the mass), and of flat ones."""
    index = torch.arange(batch, device=device)
    for name, spread, top_k, top_p in (
        ("", 3.0, None, None),
        (" top_k 40", 3.0, 40, None),
        (" top_k 40 top_p 0.9", 3.0, 40, 0.9),
        (" top_p 0.9", 4.0, None, 0.9),
        (" top_p 0.9 flat", 3.0, None, 0.9),
    ):

        def make(spread: float = spread, top_k: int | None = top_k, top_p: float | None = top_p) -> Run:
            logits = torch.randn(batch, vocab_size, device=device) * spread
            params = SampleParams(
                rows=index,
                slots=index,
                temperature=torch.ones(batch, device=device),
                seeds=index,
                positions=index,
                sample_indices=torch.zeros_like(index),
                top_k=None if top_k is None else torch.full_like(index, top_k),
                top_p=None if top_p is None else torch.full((batch,), top_p, device=device),
                min_p=None,
                workspace=new_sample_workspace(batch, vocab_size, device),
            )
            tokens, failed = torch.zeros_like(index), torch.zeros(batch, dtype=torch.bool, device=device)
            return lambda: sample(logits, params, tokens, failed)

        table.row(f"sample{name} {batch}", make, 4 * batch * vocab_size, 0)


if __name__ == "__main__":
    main()
