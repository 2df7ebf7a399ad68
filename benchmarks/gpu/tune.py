"""Finds launch shapes for the GPU that is here and writes its table, ``app/kernels/gpu/tables/<device>.json``.

    python -m benchmarks.gpu.tune --model llama-3.1-8b --budget 900

Every task is an op and a class of problems: the rows of a table. Candidates are timed on the model's shapes, operands
past the caches, and have to give what the shape in use gives. A candidate takes its place if it is faster by more than
the noise. Where time runs out the best so far counts. Processes beside each other compile all candidates first.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from triton.errors import TritonError

from app.kernels import dispatch
from app.kernels.gpu.tuning import TABLES, Row, Table, launch_shape, read_table, table_name, trying
from app.kernels.types import SplitKWorkspace
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.operands import OpCall, attention, head, product, quantized
from benchmarks.gpu.stage import Stage, copies_past_l2, seconds

_SHARED_BYTES = 227 << 10
_FASTER = 0.97
"""Share of the present time below which a candidate counts as faster."""
_SAME = 1e-2
"""Largest relative norm of the difference from the result of the shape in use."""
_ROWS = ((16, 16), (32, 32), (64, 64), (256, 256), (None, 4096))
"""Bounds of ``max_m``, and the number of rows that each is tuned with."""
_MOST_COPIES = 16
_BELOW = (0, 264, 528, 1056)
_NONE = 132
"""Number that stands for a bound of 0, which means no bound, when bounds are compared."""


@dataclass(frozen=True)
class Task:
    """A row of a table to be found."""

    op: str
    where: dict[str, int]
    dims: dict[str, int]
    """Dimensions of one of the problems, to look up the shape in use."""
    problems: dict[str, Callable[[], OpCall]]
    """Problems by their description; each call makes operands of its own."""
    candidates: list[dict[str, int]]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument("--ops", nargs="+", help="the op's names in the tables; all when absent")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds for all tasks together")
    parser.add_argument("--candidates", type=int, default=48, help="tried of a task at most")
    parser.add_argument("--rows", type=int, nargs="+", help="bounds of max_m to tune products for; all when absent")
    parser.add_argument("--table", type=Path, help="file to write instead of the device's table")
    parser.add_argument("--processes", type=int, default=1, help="that compile")
    parser.add_argument("--compile", type=int, nargs=2, metavar=("I", "N"), help="compile every Nth candidate from I")


def main() -> None:
    """Tunes op by op; what was found stands in the table however the program ends."""
    stage = Stage("tune", __doc__, _options)
    args, device = stage.args, stage.device
    on_gpu = device.type == "cuda"
    if not on_gpu and args.table is None:
        sys.exit("without a GPU this only tries the program: say --table FILE")
    dispatch.configure(dispatch.Mode.AUTO if on_gpu else dispatch.Mode.INTERPRET, threads=1)
    name = table_name(torch.cuda.get_device_name(device)) if on_gpu else ""
    path: Path = args.table or TABLES / f"{name}.json"
    chosen = [task for task in tasks(MODELS[args.model], device) if _is_chosen(task, args)]
    if args.compile is not None:
        _compile(stage, chosen)
        return
    if args.processes > 1:
        command = [sys.executable, "-m", "benchmarks.gpu.tune", *sys.argv[1:], "--compile"]
        parts = [subprocess.Popen([*command, str(part), str(args.processes)]) for part in range(args.processes)]
        for part in parts:
            part.wait()
    found: Table = {}
    deadline = time.monotonic() + args.budget
    for index, task in enumerate(chosen):
        share = (deadline - time.monotonic()) / (len(chosen) - index)
        found.setdefault(task.op, []).append(_tune(stage, task, args.candidates, time.monotonic() + share))
        path.write_text(dumps({**read_table(name), **found}), encoding="utf-8")


def tasks(model: dict[str, Any], device: torch.device) -> Iterator[Task]:
    """All tasks, in the order of the tables' rows."""
    width, inner, vocab_size = model["hidden_size"], model["intermediate_size"], model["vocab_size"]
    heads, kv_heads, head_dim = model["num_attention_heads"], model["num_key_value_heads"], model["head_dim"]
    plain = {"qkv": ((heads + 2 * kv_heads) * head_dim, width), "o": (width, heads * head_dim), "down": (width, inner)}
    workspace = SplitKWorkspace.new(device)

    def linear(kind: str, m: int, n: int, k: int, *, silu_mul: bool) -> Callable[[], OpCall]:
        return lambda: product(device, kind, m, n, k, workspace, silu_mul=silu_mul)

    def products(kind: str, m: int, *, silu_mul: bool) -> dict[str, Callable[[], OpCall]]:
        if silu_mul:
            return {"gate_up": linear(kind, m, 2 * inner, width, silu_mul=True)}
        return {name: linear(kind, m, n, k, silu_mul=False) for name, (n, k) in plain.items()}

    def logits(m: int) -> Callable[[], OpCall]:
        return lambda: head(device, m, vocab_size, width)

    def attend(rows: int, context: int, queries: int, *, int8: bool) -> Callable[[], OpCall]:
        return lambda: attention(device, model, rows, context, queries, int8=int8)

    def quantize(rows: int, columns: int) -> Callable[[], OpCall]:
        return lambda: quantized(device, rows, columns)

    for kind, (bound, m), silu_mul in itertools.product(("w8a8", "w8a16"), _ROWS, (True, False)):
        where = {**({"max_m": bound} if bound else {}), **({"gated": 1} if silu_mul else {})}
        sizes = (1, 1) if kind == "w8a8" else (2, 1)
        dims = {"m": m, "n": width, "k": width, "gated": int(silu_mul)}
        yield Task(f"gemm_{kind}", where, dims, products(kind, m, silu_mul=silu_mul), _gemm(m, *sizes, gated=silu_mul))
    for m in (64, 256):
        dims = {"m": m, "n": vocab_size, "k": width, "gated": 0}
        yield Task("gemm", {"max_m": m}, dims, {"head": logits(m)}, _gemm(m, 2, 2))
    for op, kind in (("gemv", "bf16"), ("gemv_w8a8", "w8a8"), ("gemv_w8a16", "w8a16")):
        both = {**products(kind, 1, silu_mul=False), **products(kind, 1, silu_mul=True)}
        yield Task(op, {}, {"n": width, "k": width, "gated": 0}, both, _gemv())
    for bound, columns in ((4096, width), (None, inner)):
        rows = {f"{count}x{columns}": quantize(count, columns) for count in (1, 64, 256)}
        shapes = [{"num_warps": warps, "num_stages": 1} for warps in (4, 8, 16, 32)]
        yield Task("quantize", {"max_width": bound} if bound else {}, {"width": columns}, rows, shapes)
    for int8 in (False, True):
        dims = {"head_dim": head_dim, "int8": int(int8)}
        decodes = {f"{rows}x{context}": attend(rows, context, 1, int8=int8) for rows, context in _decodes(device)}
        yield Task(
            "paged_attention_decode", dims, dims, decodes, _tiles((0,), (32, 64, 128), (1, 2, 4, 8), (3, 5, 7, 9))
        )
        length = 4096 if device.type == "cuda" else 40
        prompts = {f"1x{length}": attend(1, length, length, int8=int8)}
        yield Task("paged_attention_prefill", dims, dims, prompts, _tiles((64, 128), (32, 64, 128), (4, 8), (2, 3, 5)))


def _decodes(device: torch.device) -> list[tuple[int, int]]:
    return [(1, 1024), (1, 8192), (16, 2048), (64, 1056), (256, 1056)] if device.type == "cuda" else [(2, 40)]


def _gemm(m: int, x_bytes: int, weight_bytes: int, *, gated: bool = False) -> list[dict[str, int]]:
    """Tiles that fit into shared memory and registers."""
    tall = {16: (16,), 32: (32,), 64: (64,), 256: (64, 128)}.get(m, (128, 256))
    shapes = []
    for block_m, block_n, block_k, warps, stages, below in itertools.product(
        tall, (16, 32, 64, 128, 256), (64, 128, 256, 512), (4, 8), (3, 4, 5, 6), _BELOW if m <= 256 else (0,)
    ):
        weights = block_n * weight_bytes * (1 + gated)
        sums = block_m * block_n * (1 + gated) // (32 * warps)
        if block_k * (block_m * x_bytes + weights) * stages <= _SHARED_BYTES and 4 <= sums <= 128:
            blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8}
            shapes.append({**blocks, "split_below": below, "num_warps": warps, "num_stages": stages})
    return shapes


def _gemv() -> list[dict[str, int]]:
    sizes = itertools.product((1, 2, 4, 8), (512, 1024, 2048, 4096), (2, 4, 8))
    return [{"BLOCK_N": n, "BLOCK_K": k, "num_warps": w, "num_stages": 1} for n, k, w in sizes if n * k <= 16384]


def _tiles(
    blocks: tuple[int, ...], tiles: tuple[int, ...], warps: tuple[int, ...], stages: tuple[int, ...]
) -> list[dict[str, int]]:
    return [
        {**({"BLOCK_M": block} if block else {}), "TILE": tile, "num_warps": warp, "num_stages": stage}
        for block, tile, warp, stage in itertools.product(blocks, tiles, warps, stages)
    ]


def _is_chosen(task: Task, args: argparse.Namespace) -> bool:
    bound = task.where.get("max_m")
    return (not args.ops or task.op in args.ops) and (not args.rows or bound is None or bound in args.rows)


def _candidates(task: Task, most: int) -> list[dict[str, int]]:
    """The candidates nearest to the shape in use; each doubling or halving is a step."""
    in_use = launch_shape(task.op, **task.dims)

    def steps(shape: dict[str, int]) -> float:
        return sum(abs(math.log2((value or _NONE) / (in_use[name] or _NONE))) for name, value in shape.items())

    return sorted(task.candidates, key=steps)[:most]


def _compile(stage: Stage, chosen: list[Task]) -> None:
    """Runs every Nth candidate once: Triton keeps what it compiles on disk, for the process that measures."""
    first, step = stage.args.compile
    for task in chosen:
        calls = [make() for make in task.problems.values()]
        for shape in _candidates(task, stage.args.candidates)[first::step]:
            with contextlib.suppress(TritonError, RuntimeError), trying(task.op, shape):  # said when measured
                for call in calls:
                    call.run()


def _tune(stage: Stage, task: Task, most: int, deadline: float) -> Row:
    """The row of the fastest candidate, or of the shape in use if none is faster."""
    in_use = launch_shape(task.op, **task.dims)
    calls = {name: _copies(make, stage.device) for name, make in task.problems.items()}
    baseline = {name: _median(copies, stage.device) for name, copies in calls.items()}
    expected = {name: copies[0].out.clone() for name, copies in calls.items()}
    common = {"op": task.op, "where": task.where}
    stage.emit({**common, "in_use": in_use, "in_use_us": _micros(baseline)})
    best, best_time = in_use, _FASTER
    for shape in _candidates(task, most):
        if time.monotonic() > deadline:
            stage.emit({**common, "note": "no time for more candidates"})
            break
        try:
            with trying(task.op, shape):
                taken = {name: _median(copies, stage.device) for name, copies in calls.items()}
        except (TritonError, RuntimeError) as error:  # too large, or nothing that the compiler can do
            stage.emit({**common, "shape": shape, "error": f"{type(error).__name__}: {error}"[:200]})
            continue
        wrong = [name for name, copies in calls.items() if _difference(copies[0].out, expected[name]) > _SAME]
        relative = sum(taken[name] / baseline[name] for name in taken) / len(taken)
        stage.emit({**common, "shape": shape, "us": _micros(taken), "relative": round(relative, 4), "wrong": wrong})
        if not wrong and relative < best_time:
            best, best_time = shape, relative
    stage.emit({**common, "chosen": best, "relative": 1.0 if best is in_use else round(best_time, 4)})
    return Row(best, task.where)


def _copies(make: Callable[[], OpCall], device: torch.device) -> list[OpCall]:
    first = make()
    return [first, *(make() for _ in range(min(_MOST_COPIES, copies_past_l2(first.nbytes, device)) - 1))]


def _median(copies: list[OpCall], device: torch.device) -> float:
    return seconds([call.run for call in copies], device, repeats=5, target_s=0.01)["p50_s"]


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Relative norm; infinite where something is no number."""
    value = float((actual.double() - expected.double()).norm() / expected.double().norm())
    return value if value == value else float("inf")


def _micros(taken: dict[str, float]) -> dict[str, float]:
    return {name: round(value * 1e6, 2) for name, value in taken.items()}


def dumps(table: Table) -> str:
    """A table as its file has it: a line a row."""
    lines = []
    for op, rows in sorted(table.items()):
        parts = [
            msgspec.json.encode({**({"where": row.where} if row.where else {}), "shape": row.shape}).decode()
            for row in rows
        ]
        lines.append(f'  "{op}": [\n    ' + ",\n    ".join(parts) + "\n  ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
