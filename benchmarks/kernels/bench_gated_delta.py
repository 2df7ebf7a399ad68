"""Native ops of gated-delta-rule layers: ``python -m benchmarks.kernels.bench_gated_delta``.

``causal_conv`` and ``gated_delta`` of decodes and of one prompt, between copies of their operands that no cache holds
all of, against the bytes they move: activations once, and of every row its state read and written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from app.kernels import dispatch
from app.kernels.causal_conv import causal_conv
from app.kernels.gated_delta import gated_delta
from app.kernels.types import AttentionMetadata, LayerState
from benchmarks.kernels.measure import PAST_CACHES, measured, parser, report

HEADS = {"qwen3.5-0.8b": (16, 16, 128), "qwen3-next-80b": (16, 32, 128)}
"""Shape of a layer: key heads, value heads and their width."""
STEPS = ((1, 1), (16, 1), (1, 64), (1, 512))
"""Steps: rows, and tokens of each."""
_TAPS, _BLOCK, _POSITION = 4, 16, 160
_MOST_COPIES = 32


def make(op: str, model: str, rows: int, tokens: int) -> tuple[Callable[[], None], int]:
    """A call on operands of its own, and the bytes it moves. The state is left in another block than it was read from,
    as at the end of each block."""
    key_heads, heads, width = HEADS[model]
    count, channels = rows * tokens, (2 * key_heads + heads) * width
    meta = AttentionMetadata(
        query_start_loc=torch.arange(0, count + 1, tokens, dtype=torch.int32),
        seq_lens=torch.full((rows,), _POSITION + tokens, dtype=torch.int32),
        block_tables=(torch.arange(rows * 64, dtype=torch.int32).view(rows, 64) % (2 * rows)).contiguous(),
        slot_mapping=torch.zeros(count, dtype=torch.int64),
        max_query_len=tokens,
        max_seq_len=_POSITION + tokens,
    )
    qkv = torch.randn(count, channels)
    if op == "causal_conv":
        state = LayerState(torch.zeros(2 * rows, _TAPS - 1, channels), torch.empty(0), _BLOCK)
        moved = 2 * qkv.nbytes + state.conv.nbytes
        return partial(causal_conv, torch.randn_like(qkv), torch.randn(_TAPS, channels), state, meta, qkv), moved
    state = LayerState(torch.empty(0), torch.zeros(2 * rows, heads, width, width), _BLOCK)
    b, a, out = torch.randn(count, heads), torch.randn(count, heads), torch.empty(count, heads * width)
    call = partial(gated_delta, qkv, b, a, torch.rand(heads), torch.randn(heads), state, meta, out)
    return call, qkv.nbytes + out.nbytes + state.recurrent.nbytes


def measure(op: str, model: str, rows: int, tokens: int, repeats: int) -> dict[str, object]:
    """A row of figures."""
    call, moved = make(op, model, rows, tokens)
    copies = min(_MOST_COPIES, 1 + PAST_CACHES // moved)
    kept = [call, *(make(op, model, rows, tokens)[0] for _ in range(copies - 1))]  # recorded calls hold bare addresses
    with dispatch.recording() as calls:
        for call in kept:
            call()
    size = {"tokens": rows * tokens, "rows": rows, "max_query_len": tokens}
    shape = {"op": op, "model": model, "rows": rows, "tokens": tokens, "copies": copies}
    return shape | measured(calls, repeats, nbytes=moved, operations=0, kind="int8", **size)


def main() -> None:
    """Runs every op and shape, and prints a row each."""
    args = parser(__doc__).parse_args()
    dispatch.configure(dispatch.Mode.STRICT, args.threads, isa=args.isa)
    for op in ("causal_conv", "gated_delta"):
        for model in HEADS:
            for rows, tokens in STEPS:
                report("kernel_gated_delta", measure(op, model, rows, tokens, args.repeats), save=args.save)


if __name__ == "__main__":
    main()
