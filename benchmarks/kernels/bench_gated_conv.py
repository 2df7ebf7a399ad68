"""The native op of gated short convolutions: ``python -m benchmarks.kernels.bench_gated_conv``.

``gated_conv`` of decodes and of one prompt, between copies of their operands that no cache holds all of, against the
bytes they move: activations once, and of every row its state read and written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from app.kernels import dispatch
from app.kernels.gated_conv import gated_conv
from app.kernels.types import Act, AttentionMetadata, LayerState, num_groups
from benchmarks.kernels.measure import PAST_CACHES, measured, parser, report

CHANNELS = {"lfm2-350m": 1024, "lfm2-1.2b": 2048}
"""Width of a layer."""
STEPS = ((1, 1), (16, 1), (1, 64), (1, 512))
"""Steps: rows, and tokens of each."""
_TAPS, _BLOCK, _POSITION = 3, 16, 160
_MOST_COPIES = 32


def make(channels: int, rows: int, tokens: int, *, int8: bool) -> tuple[Callable[[], None], int]:
    """A call on operands of its own, and the bytes it moves. The state is left in another block than it was read from,
    as at the end of each block."""
    count = rows * tokens
    meta = AttentionMetadata(
        query_start_loc=torch.arange(0, count + 1, tokens, dtype=torch.int32),
        seq_lens=torch.full((rows,), _POSITION + tokens, dtype=torch.int32),
        block_tables=(torch.arange(rows * 64, dtype=torch.int32).view(rows, 64) % (2 * rows)).contiguous(),
        slot_mapping=torch.zeros(count, dtype=torch.int64),
        max_query_len=tokens,
        max_seq_len=_POSITION + tokens,
    )
    projected = torch.randn(count, 3 * channels)
    out = Act(torch.empty(count, channels))
    if int8:
        out = Act(torch.empty(count, channels, dtype=torch.int8), torch.empty(count, num_groups(channels)))
    state = LayerState(torch.zeros(2 * rows, _TAPS - 1, channels), torch.empty(0), _BLOCK)
    call = partial(gated_conv, projected, torch.randn(_TAPS, channels), state, meta, out)
    return call, projected.nbytes + out.values.nbytes + state.conv.nbytes


def measure(model: str, rows: int, tokens: int, repeats: int, *, int8: bool) -> dict[str, object]:
    """A row of figures."""
    call, moved = make(CHANNELS[model], rows, tokens, int8=int8)
    copies = min(_MOST_COPIES, 1 + PAST_CACHES // moved)
    kept = [call, *(make(CHANNELS[model], rows, tokens, int8=int8)[0] for _ in range(copies - 1))]  # bare addresses
    with dispatch.recording() as calls:
        for call in kept:
            call()
    size = {"tokens": rows * tokens, "rows": rows, "max_query_len": tokens}
    shape = {"op": "gated_conv", "model": model, "rows": rows, "tokens": tokens, "int8": int8, "copies": copies}
    return shape | measured(calls, repeats, nbytes=moved, operations=0, kind="int8", **size)


def main() -> None:
    """Runs every shape, and prints a row each."""
    args = parser(__doc__).parse_args()
    dispatch.configure(dispatch.Mode.STRICT, args.threads, isa=args.isa)
    for model in CHANNELS:
        for rows, tokens in STEPS:
            for int8 in (False, True):
                report("kernel_gated_conv", measure(model, rows, tokens, args.repeats, int8=int8), save=args.save)


if __name__ == "__main__":
    main()
