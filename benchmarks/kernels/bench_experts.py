"""Native experts of a mixture, against dense layers of as many active bytes: ``python -m
benchmarks.kernels.bench_experts``.

A row is a layer of experts for so many tokens: routing, gate and up, down with the weighted sum. ``dense_p50_s`` is the
time of a gated MLP over all that one token's experts are wide together, for the same tokens: what a token would cost if
its experts were one. Tokens choose at random, so that few have experts in common.
"""

from __future__ import annotations

import torch

from app.kernels import dispatch
from app.kernels.activation import Activation
from app.kernels.dispatch import Call, Dim
from app.kernels.experts import ExpertsScratchLayout, experts
from app.kernels.linear.cpu import linear_call
from app.kernels.linear.pack import new_packed_weight
from app.kernels.native.program import Program
from app.kernels.quantize.cpu import quantize_call
from app.kernels.route import RoutingRule, route
from app.kernels.types import Act, PackedExperts, PackedWeight, Routing, StepArena, num_groups
from app.quant.formats.packed import NewPackedExperts
from benchmarks.kernels.measure import PAST_CACHES, alternating, parser, report, shares

SHAPES = {
    "qwen3-30b-a3b": (128, 8, 768, 2048),
    "olmoe": (64, 8, 1024, 2048),
    "mixtral": (8, 2, 14336, 4096),
    "deepseek-v2-lite": (64, 8, 1408, 2048),  # its two shared experts are chosen like the others here
}
"""Shapes: (experts, chosen, width of an expert, width of the model)."""
TOKENS = (1, 4, 16, 64, 256, 1024)
DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16}
_OPERATIONS_A_RUN = 40e9
CPU = torch.device("cpu")


def fill(weight: PackedWeight) -> PackedWeight:
    """Fills a packed weight with noise: which rows it stands for does not matter."""
    if weight.scale is None:
        weight.data.normal_(std=0.02)
    else:
        weight.data.copy_(torch.randint(-128, 128, weight.data.shape, dtype=torch.int8))
        weight.scale.fill_(1e-3)
    return weight


def make_experts(name: str, dtype: torch.dtype) -> PackedExperts:
    """A layer's experts."""
    count, _, inner, width = SHAPES[name]
    weight = NewPackedExperts(count, inner, width, dtype=dtype).weight
    for one in (*weight.gate_up, *weight.down):
        fill(one)
    return weight


def make_dense(name: str, dtype: torch.dtype) -> list[tuple[PackedWeight, PackedWeight]]:
    """MLPs as wide as a token's experts together, copies that no cache holds all of."""
    _, chosen, inner, width = SHAPES[name]
    wide = chosen * inner
    copies = max(2, PAST_CACHES // (3 * wide * width * dtype.itemsize))
    return [
        (
            fill(new_packed_weight(2 * wide, width, dtype, bias=False, gate_up=True)),
            fill(new_packed_weight(width, wide, dtype, bias=False, gate_up=False)),
        )
        for _ in range(copies)
    ]


def make_x(tokens: int, width: int, dtype: torch.dtype) -> Act:
    """Activations of random tokens."""
    if dtype is torch.bfloat16:
        return Act(torch.randn(tokens, width).bfloat16())
    return Act(
        torch.randint(-127, 128, (tokens, width), dtype=torch.int8), torch.full((tokens, num_groups(width)), 1e-2)
    )


def expert_calls(name: str, weight: PackedExperts, tokens: int, used: int) -> list[Call]:
    """Layers one after another, of the same weights: each has tokens, and choices, of its own."""
    count, chosen, _, width = SHAPES[name]
    dtype = weight.down[0].data.dtype
    arena = StepArena(tokens, CPU)
    arena.begin(tokens)
    scratch = ExpertsScratchLayout.of(weight, chosen, torch.float32).take(arena)
    out = torch.empty(tokens, width)
    with dispatch.recording() as calls:
        for _ in range(used):
            routing = Routing(
                torch.empty(tokens, chosen, dtype=torch.int32),
                torch.empty(tokens, chosen),
                torch.empty(tokens * chosen, dtype=torch.int32),
                torch.empty(count + 1, dtype=torch.int32),
            )
            route(torch.randn(tokens, count), routing, RoutingRule(normalise=True))
            experts(make_x(tokens, width, dtype), weight, routing, out, scratch)
    return calls


def dense_calls(name: str, dense: list[tuple[PackedWeight, PackedWeight]], tokens: int, used: int) -> list[Call]:
    """As many gated MLPs one after another."""
    _, chosen, inner, width = SHAPES[name]
    wide, dtype = chosen * inner, dense[0][0].data.dtype
    gated, out = torch.empty(tokens, wide), torch.empty(tokens, width)
    hidden = Act(torch.empty(tokens, wide, dtype=dtype))
    if dtype is torch.int8:
        hidden = Act(hidden.values, torch.empty(tokens, num_groups(wide)))
    calls = []
    for i in range(used):
        gate_up, down = dense[i % len(dense)]
        product = gated if dtype is torch.int8 else hidden.values
        calls.append(linear_call(make_x(tokens, width, dtype), gate_up, product, None, Activation.SILU_MUL, Dim.TOKENS))
        if dtype is torch.int8:
            calls.append(quantize_call(gated, hidden, Dim.TOKENS))
        calls.append(linear_call(hidden, down, out, None, Activation.NONE, Dim.TOKENS))
    return calls


def main() -> None:
    """Runs every shape that was asked for and prints a row each."""
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[:1])
    options.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    args = options.parse_args()
    dispatch.configure(dispatch.Mode.AUTO, args.threads, isa=args.isa)
    for kind in args.dtypes:
        for name in args.shapes:
            weight, dense = make_experts(name, DTYPES[kind]), make_dense(name, DTYPES[kind])
            for tokens in args.tokens:
                row = measure(name, kind, weight, dense, tokens, args.repeats)
                report("kernel_experts", row, save=args.save)


def measure(
    name: str,
    kind: str,
    weight: PackedExperts,
    dense: list[tuple[PackedWeight, PackedWeight]],
    tokens: int,
    repeats: int,
) -> dict[str, object]:
    """A row of figures for one shape and number of tokens."""
    count, chosen, inner, width = SHAPES[name]
    operations = 6 * tokens * chosen * inner * width
    used = min(len(dense) * 4, max(1, int(_OPERATIONS_A_RUN / operations)))
    expert_bytes = 3 * inner * width * DTYPES[kind].itemsize
    read = count * (1 - (1 - chosen / count) ** tokens)  # of the experts, as may be expected
    mixed = Program(dispatch.pool(), expert_calls(name, weight, tokens, used), dispatch.isa())
    single = Program(dispatch.pool(), dense_calls(name, dense, tokens, used), dispatch.isa())
    taken, dense_taken = alternating(
        lambda: mixed.run(tokens=tokens), lambda: single.run(tokens=tokens), repeats, calls=used
    )
    shape = {"layer": name, "experts": count, "chosen": chosen, "inner": inner, "width": width, "dtype": kind}
    rates = shares(taken["p50_s"], int(read * expert_bytes), operations, kind)
    ratio = {"dense_p50_s": dense_taken["p50_s"], "of_dense": round(taken["p50_s"] / dense_taken["p50_s"], 3)}
    machine = {"isa": dispatch.isa(), "threads": dispatch.pool().threads}
    return shape | {"rows": tokens} | machine | taken | rates | ratio


if __name__ == "__main__":
    main()
