"""Native row-wise ops, against the bytes they move: ``python -m benchmarks.kernels.bench_rows``.

``embed``, ``add_norm`` (into floats, and into int8 as a linear layer wants it) and ``qk_norm_rope_kv_write`` (into bf16
and int8 pages) between copies of their operands that no cache holds all of. In a step most of what they read has
just been written, so there they are faster: a low share here is a memory's, not a kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.add_norm import add_norm
from app.kernels.embed import embed
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import Act, LayerKVCache, num_groups
from benchmarks.kernels.measure import PAST_CACHES, measured, parser, report

ROWS = (1, 16, 256, 1024)
WIDTHS = {"135m": (576, 9, 3, 64), "8b": (4096, 32, 8, 128)}
"""Widths of the models: hidden size, query heads, KV heads and their width."""
VOCABULARY = 49152
_BLOCK = 16
_MOST_COPIES = 64

Call = Callable[[], None]
"""One call of an op on operands of its own."""
Maker = Callable[[int, str], tuple[Call, int]]
"""Makes, of rows and model, a call and the bytes it moves."""


def _nbytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _act(rows: int, width: int, *, int8: bool) -> Act:
    if int8:
        return Act(torch.empty(rows, width, dtype=torch.int8), torch.empty(rows, num_groups(width)))
    return Act(torch.empty(rows, width))


@cache
def _table(width: int) -> Tensor:
    return torch.zeros(VOCABULARY, width, dtype=torch.bfloat16)


def make_embed(rows: int, model: str) -> tuple[Call, int]:
    """Rows of one bf16 table, other ones in each copy, widened."""
    width = WIDTHS[model][0]
    ids, out = torch.randperm(VOCABULARY)[:rows], torch.empty(rows, width)
    return partial(embed, ids, _table(width), out), rows * width * 2 + _nbytes(out)


def make_add_norm(rows: int, model: str, *, int8: bool) -> tuple[Call, int]:
    """A residual stream in fp32, read and written, and the norm of it."""
    width = WIDTHS[model][0]
    x, residual = torch.randn(rows, width), torch.randn(rows, width)
    weight, out = torch.ones(width), _act(rows, width, int8=int8)
    moved = _nbytes(x, residual, residual, out.values, out.scale)
    return partial(add_norm, x, weight, 1e-5, out, residual=residual), moved


def make_rope_kv(rows: int, model: str, *, int8: bool) -> tuple[Call, int]:
    """As in a decode step: each row a sequence of its own, so each writes into blocks of its own."""
    _, heads, kv_heads, width = WIDTHS[model]
    shape = (rows, 2, kv_heads, _BLOCK, width)
    if int8:
        scale = torch.zeros(shape[:4], dtype=torch.float16)
        kv = LayerKVCache(torch.zeros(shape, dtype=torch.int8), scale, packed=True)
    else:
        kv = LayerKVCache(torch.zeros(shape, dtype=torch.bfloat16), packed=True)
    qkv, q_out = torch.randn(rows, (heads + 2 * kv_heads) * width), torch.empty(rows, heads, width)
    positions = torch.zeros(rows, dtype=torch.int64)
    slots = torch.arange(rows) * _BLOCK + 5
    call = partial(qk_norm_rope_kv_write, qkv, positions, torch.ones(1, width), kv, slots, q_out)
    return call, _nbytes(qkv, q_out) + _nbytes(kv.values) // _BLOCK


OPS: dict[str, Maker] = {
    "embed": make_embed,
    "add_norm": partial(make_add_norm, int8=False),
    "add_norm int8": partial(make_add_norm, int8=True),
    "qk_norm_rope_kv_write": partial(make_rope_kv, int8=False),
    "qk_norm_rope_kv_write int8": partial(make_rope_kv, int8=True),
}


def measure(op: str, model: str, rows: int, repeats: int) -> dict[str, object]:
    """A row of figures."""
    call, moved = OPS[op](rows, model)
    copies = min(_MOST_COPIES, 1 + PAST_CACHES // max(moved, 1))
    kept = [call, *(OPS[op](rows, model)[0] for _ in range(copies - 1))]  # recorded calls hold bare addresses
    with dispatch.recording() as calls:
        for call in kept:
            call()
    shape = {"op": op, "model": model, "rows": rows, "copies": copies}
    return shape | measured(calls, repeats, nbytes=moved, operations=0, kind="int8", tokens=rows)


def main() -> None:
    """Runs every op and shape, and prints a row each."""
    args = parser(__doc__).parse_args()
    dispatch.configure(dispatch.Mode.STRICT, args.threads, isa=args.isa)
    for op in OPS:
        for model in WIDTHS:
            for rows in ROWS:
                report("kernel_rows", measure(op, model, rows, args.repeats), save=args.save)


if __name__ == "__main__":
    main()
