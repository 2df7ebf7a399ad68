"""Native linear layers over packed weights: ``python -m benchmarks.kernels.bench_linear``."""

from __future__ import annotations

import torch

from app.kernels import dispatch
from app.kernels.dispatch import Dim
from app.kernels.linear import Activation
from app.kernels.linear.cpu import linear_call
from app.kernels.linear.pack import new_packed_weight, pack_rows
from app.kernels.types import Act, PackedWeight, num_groups
from benchmarks.kernels.measure import PAST_CACHES, measured, parser, report

SHAPES = {
    "qkv": (960, 576),
    "o": (576, 576),
    "gate_up": (3072, 576),
    "down": (576, 1536),
    "head": (49152, 576),
    "square": (4096, 4096),
    "wide": (14336, 4096),
}
ROWS = (1, 4, 16, 64, 256, 1024)
DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16}
_OPERATIONS_A_RUN = 40e9


def weights(name: str, dtype: torch.dtype) -> list[PackedWeight]:
    """Copies of a weight that no cache holds all of."""
    n, k = SHAPES[name]
    copies = max(2, PAST_CACHES // (n * k * dtype.itemsize))
    first = new_packed_weight(n, k, dtype, bias=False, gate_up=name == "gate_up")
    pack_rows(first, 0, torch.randn(n, k) * 0.02)
    others = [new_packed_weight(n, k, dtype, bias=False, gate_up=first.gate_up) for _ in range(copies - 1)]
    for other in others:
        other.data.copy_(first.data)
        if first.scale is not None and other.scale is not None:
            other.scale.copy_(first.scale)
    return [first, *others]


def main() -> None:
    """Runs every shape that was asked for and prints a row each."""
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    args = options.parse_args()
    dispatch.configure(dispatch.Mode.AUTO, args.threads, isa=args.isa)
    for kind in args.dtypes:
        for name in args.shapes:
            copies = weights(name, DTYPES[kind])
            for tokens in args.rows:
                report("kernel_linear", measure(name, kind, copies, tokens, args.repeats), save=args.save)


def measure(name: str, kind: str, copies: list[PackedWeight], tokens: int, repeats: int) -> dict[str, object]:
    """A row of figures for one shape and number of rows."""
    n, k = SHAPES[name]
    x = Act(torch.randn(tokens, k).bfloat16())
    if kind == "int8":
        x = Act(torch.randint(-127, 128, (tokens, k), dtype=torch.int8), torch.ones(tokens, num_groups(k)))
    activation = Activation.SILU_MUL if copies[0].gate_up else Activation.NONE
    out = torch.empty(tokens, n // 2 if activation.gated else n)
    used = copies[: max(1, int(_OPERATIONS_A_RUN / (2 * tokens * n * k)))]
    calls = [linear_call(x, weight, out, None, activation, Dim.TOKENS) for weight in used]
    shape = {"layer": name, "n": n, "k": k, "dtype": kind, "rows": tokens}
    # Activations stay in the caches.
    nbytes, operations = n * k * DTYPES[kind].itemsize, 2 * tokens * n * k
    return shape | measured(calls, repeats, nbytes=nbytes, operations=operations, kind=kind, tokens=tokens)


if __name__ == "__main__":
    main()
