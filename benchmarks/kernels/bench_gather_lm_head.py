"""The native head over packed weights, from gathered rows: ``python -m benchmarks.kernels.bench_gather_lm_head``."""

from __future__ import annotations

import torch

from app.kernels import dispatch
from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.linear.pack import new_packed_weight, pack_rows
from app.kernels.types import Act, num_groups
from benchmarks.kernels.measure import PAST_CACHES, measured, parser, report

SHAPES = {"135m": (49152, 576), "0.6b": (151936, 1024)}
ROWS = (1, 4, 16, 64)
TOKENS = 256
DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16}


def measure(model: str, kind: str, rows: int, repeats: int) -> dict[str, object]:
    """A row of figures for one head and number of rows that need logits."""
    vocab_size, width = SHAPES[model]
    dtype = DTYPES[kind]
    hidden, indices = torch.randn(TOKENS, width), torch.randperm(TOKENS)[:rows]
    scratch = Act(torch.empty(rows, width, dtype=dtype))
    if kind == "int8":
        scratch = Act(scratch.values, torch.empty(rows, num_groups(width)))
    out = torch.empty(rows, vocab_size)
    copies = max(2, PAST_CACHES // (vocab_size * width * dtype.itemsize))
    with dispatch.recording() as calls:
        for _ in range(copies):
            weight = new_packed_weight(vocab_size, width, dtype, bias=False, gate_up=False)
            pack_rows(weight, 0, torch.randn(vocab_size, width) * 0.02)
            gather_lm_head(hidden, indices, weight, out, scratch=scratch)
    shape = {"model": model, "n": vocab_size, "k": width, "dtype": kind, "rows": rows}
    nbytes, operations = vocab_size * width * dtype.itemsize + out.nbytes, 2 * rows * vocab_size * width
    size = {"tokens": TOKENS, "logits": rows}
    return shape | measured(calls, repeats, nbytes=nbytes, operations=operations, kind=kind, **size)


def main() -> None:
    """Runs every head and number of rows, and prints a row each."""
    args = parser(__doc__).parse_args()
    dispatch.configure(dispatch.Mode.STRICT, args.threads, isa=args.isa)
    for kind in DTYPES:
        for model in SHAPES:
            for rows in ROWS:
                report("kernel_gather_lm_head", measure(model, kind, rows, args.repeats), save=args.save)


if __name__ == "__main__":
    main()
