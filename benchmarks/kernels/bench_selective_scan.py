"""Native scan of Mamba-2 layers: ``python -m benchmarks.kernels.bench_selective_scan``.

``selective_scan`` of decodes and of one prompt, between copies of its operands that no cache holds all of, against the
bytes it moves: activations once, and of every row its state read and written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from app.kernels import dispatch
from app.kernels.selective_scan import selective_scan
from app.kernels.types import AttentionMetadata, LayerState
from benchmarks.kernels.measure import PAST_CACHES, measured, parser, report

HEADS = {
    "granite-4.0-h-350m": (1, 48, 128, 32),
    "granite-4.0-h-tiny": (1, 48, 128, 64),
    "falcon-h1-1.5b": (1, 48, 256, 64),
}
"""Shape of a layer: groups, heads, and the two widths of a head's state."""
STEPS = ((1, 1), (16, 1), (1, 64), (1, 512))
"""Steps: rows, and tokens of each."""
_BLOCK, _POSITION = 16, 160
_MOST_COPIES = 32


def make(model: str, rows: int, tokens: int) -> tuple[Callable[[], None], int]:
    """A call on operands of its own, and the bytes it moves. The state is left in another block than it was read from,
    as at the end of each block."""
    groups, heads, k_dim, v_dim = HEADS[model]
    count, inner = rows * tokens, heads * v_dim
    meta = AttentionMetadata(
        query_start_loc=torch.arange(0, count + 1, tokens, dtype=torch.int32),
        seq_lens=torch.full((rows,), _POSITION + tokens, dtype=torch.int32),
        block_tables=(torch.arange(rows * 64, dtype=torch.int32).view(rows, 64) % (2 * rows)).contiguous(),
        slot_mapping=torch.zeros(count, dtype=torch.int64),
        max_query_len=tokens,
        max_seq_len=_POSITION + tokens,
    )
    state = LayerState(torch.empty(0), torch.zeros(2 * rows, heads, k_dim, v_dim), _BLOCK)
    xbc, dt, out = torch.randn(count, inner + 2 * groups * k_dim), torch.randn(count, heads), torch.empty(count, inner)
    a_log, dt_bias, d = (torch.rand(heads) for _ in range(3))
    call = partial(selective_scan, xbc, dt, a_log, dt_bias, d, state, meta, out)
    return call, xbc.nbytes + out.nbytes + state.recurrent.nbytes


def measure(model: str, rows: int, tokens: int, repeats: int) -> dict[str, object]:
    """A row of figures."""
    call, moved = make(model, rows, tokens)
    copies = min(_MOST_COPIES, 1 + PAST_CACHES // moved)
    kept = [call, *(make(model, rows, tokens)[0] for _ in range(copies - 1))]  # recorded calls hold bare addresses
    with dispatch.recording() as calls:
        for call in kept:
            call()
    size = {"tokens": rows * tokens, "rows": rows, "max_query_len": tokens}
    shape = {"op": "selective_scan", "model": model, "rows": rows, "tokens": tokens, "copies": copies}
    return shape | measured(calls, repeats, nbytes=moved, operations=0, kind="int8", **size)


def main() -> None:
    """Runs every shape, and prints a row each."""
    args = parser(__doc__).parse_args()
    dispatch.configure(dispatch.Mode.STRICT, args.threads, isa=args.isa)
    for model in HEADS:
        for rows, tokens in STEPS:
            report("kernel_selective_scan", measure(model, rows, tokens, args.repeats), save=args.save)


if __name__ == "__main__":
    main()
