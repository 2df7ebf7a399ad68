"""Attention over packed pages: decode against the bytes of the pages, prefill against the bf16 ceiling.

``python -m benchmarks.kernels.bench_paged_attention [--threads N] [--save]``
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from app.kernels import dispatch
from app.kernels.dispatch import Mode, recording
from app.kernels.native.program import Program
from app.kernels.paged_attention import paged_attention
from app.kernels.types import Act, AttentionMetadata, LayerKVCache

BF16_GFLOPS = 875.0
"""Ceiling of bf16 products, measured with two threads, in GFLOP/s."""
SHAPES = [(9, 3, 64), (32, 8, 128)]
DECODES = [(batch, context) for batch in (1, 16, 64) for context in (256, 1024, 4096) if batch * context <= 65536]
SECONDS = 0.5


def measure(
    heads: int, kv_heads: int, width: int, batch: int, context: int, query_len: int, name: str
) -> dict[str, object]:
    """The best of half a second of runs; pages are random, and in random order."""
    count = batch * -(-context // 16)
    shape = (count, 2, kv_heads, 16, width)
    if name == "int8":
        kv = LayerKVCache(
            torch.randint(-127, 128, shape, dtype=torch.int8),
            torch.full(shape[:4], 0.01, dtype=torch.float16),
            packed=True,
        )
    else:
        kv = LayerKVCache(torch.randn(shape, dtype=torch.bfloat16), packed=True)
    tokens = batch * query_len
    meta = AttentionMetadata(
        query_start_loc=torch.arange(batch + 1, dtype=torch.int32) * query_len,
        seq_lens=torch.full((batch,), context, dtype=torch.int32),
        block_tables=torch.randperm(count).view(batch, -1).int(),
        slot_mapping=torch.zeros(tokens, dtype=torch.int64),
        max_query_len=query_len,
        max_seq_len=context,
    )
    q, out = torch.randn(tokens, heads, width).bfloat16(), Act(torch.empty(tokens, heads * width))
    with recording() as calls:
        paged_attention(q, kv, meta, out, scale=width**-0.5)
    program = Program(dispatch.pool(), calls, dispatch.isa())
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        program.run(tokens=tokens, rows=batch, max_seq_len=context, max_query_len=query_len)
        best = min(best, time.perf_counter() - begin)
    attended = batch * query_len * (2 * context - query_len + 1) // 2
    gflops = 4 * heads * width * attended / best / 1e9
    return {
        "op": "paged_attention",
        "heads": f"{heads}/{kv_heads}x{width}",
        "kv": name,
        "batch": batch,
        "context": context,
        "query_len": query_len,
        "threads": dispatch.pool().threads,
        "isa": dispatch.isa(),
        "us": round(best * 1e6, 1),
        "kv_gbps": round(kv.values.numel() * kv.values.element_size() / best / 1e9, 1),
        "gflops": round(gflops, 1),
        "of_bf16_ceiling": round(gflops / BF16_GFLOPS, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="append the rows to benchmarks/results/kernels_cpu.jsonl")
    args = parser.parse_args()
    dispatch.configure(Mode.AUTO, args.threads)
    cases = [(1, 1024, 1024), *((batch, context, 1) for batch, context in DECODES)]
    rows = []
    for name in ("bf16", "int8"):
        for shape in SHAPES:
            for case in cases:
                rows.append(measure(*shape, *case, name))
                print(*rows[-1].values(), flush=True)
    if args.save:
        path = Path(__file__).parents[1] / "results" / "kernels_cpu.jsonl"
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
