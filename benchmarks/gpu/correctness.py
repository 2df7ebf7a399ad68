"""Every kernel on this device against its specification in plain torch, fp32 on the CPU, over a grid of shapes.

The specification is itself within 1e-6 of fp64 (``tests/kernels``); inputs are bf16 values on both sides.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.add_norm import add_norm
from app.kernels.embed import embed
from app.kernels.expand_rows import expand_rows
from app.kernels.experts import ExpertsScratchLayout, experts
from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.layer_norm import layer_norm
from app.kernels.linear import Activation, linear, scratch_width
from app.kernels.norm_add_norm import norm_add_norm
from app.kernels.paged_attention import paged_attention
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.route import Groups, RoutingRule, Scoring, route
from app.kernels.sample import LogprobsOut, SampleParams, logprobs, sample
from app.kernels.sample.workspace import new_sample_workspace
from app.kernels.types import (
    Act,
    ActFormat,
    AttentionMetadata,
    ExpertsWeight,
    LinearWeight,
    Routing,
    SplitKWorkspace,
    StepArena,
    StepRows,
    StepTokens,
)
from benchmarks.gpu.place import BLOCK_SIZE, Place
from benchmarks.gpu.stage import Stage

_BF16, _INT8_KV, _FP32, _EXACT = 5e-3, 2e-2, 1e-6, 0.0
_CPU = torch.device("cpu")


Run = Callable[[Place], list[Tensor]]


def run_add_norm(place: Place, rows: int, width: int) -> list[Tensor]:
    """Residual and norm."""
    residual, out = place.randn(rows, width), Act(place.empty(rows, width))
    add_norm(place.randn(rows, width), place.randn(width), 1e-6, out, residual=residual)
    return [residual, out.values]


def run_norm_add_norm(place: Place, rows: int, width: int) -> list[Tensor]:
    """Norm, residual and norm."""
    residual, out = place.randn(rows, width), Act(place.empty(rows, width))
    norm_add_norm(place.randn(rows, width), place.randn(width), residual, place.randn(width), 1e-6, out)
    return [residual, out.values]


def run_layer_norm(place: Place, rows: int, width: int) -> list[Tensor]:
    """Residual and norm."""
    residual, out = place.randn(rows, width), Act(place.empty(rows, width))
    layer_norm(place.randn(rows, width), place.randn(width), place.randn(width), 1e-6, out, residual=residual)
    return [residual, out.values]


def run_positions(place: Place, rows: int, width: int) -> list[Tensor]:
    """Embeddings with a scale and learned positions."""
    ids, positions, out = place.ints(0, 50, rows), place.ints(0, 20, rows), place.empty(rows, width)
    learned = place.randn(20, width)
    embed(ids, place.randn(50, width), out, scale=2.5, positions_T=positions, position_table_PD=learned)
    return [out]


def run_linear(place: Place, rows: int, n: int, k: int, fmt: str, *, activation: Activation) -> list[Tensor]:
    """A product with bias in one of the formats."""
    if fmt == "float":
        x, weight = Act(place.randn(rows, k)), LinearWeight(place.randn(n, k), bias=place.randn(n))
    else:
        takes = ActFormat.INT8_TOKEN if fmt == "W8A8" else ActFormat.FLOAT
        values, bias = place.ints(-127, 128, n, k, dtype=torch.int8), place.randn(n).float()
        workspace = SplitKWorkspace.new(place.device)
        weight = LinearWeight(values, place.scales(n), bias, takes, workspace)
        x = Act(place.randn(rows, k))
        if takes is ActFormat.INT8_TOKEN:
            x = Act(place.ints(-127, 128, rows, k, dtype=torch.int8), place.scales(rows, 1))
    width = scratch_width(weight, ActFormat.FLOAT, activation)
    out = Act(place.empty(rows, n // 2 if activation.gated else n))
    linear(x, weight, out, activation=activation, scratch=place.empty(rows, width) if width else None)
    return [out.values]


def run_route(place: Place, rows: int, count: int, chosen: int) -> list[Tensor]:
    """A routing of random logits."""
    routing = new_routing(place, rows, count, chosen)
    route(place.randn(rows, count).float(), routing, RoutingRule(normalise=False))
    return [routing.experts, routing.weights, routing.slots, routing.offsets]


def run_grouped_route(place: Place, rows: int, count: int, chosen: int) -> list[Tensor]:
    """Likewise by sigmoids with a bias, in the best groups."""
    rule = RoutingRule(scoring=Scoring.SIGMOID, normalise=True, scale=2.5, groups=Groups(count=8, chosen=4, best=2))
    routing = new_routing(place, rows, count, chosen)
    route(place.randn(rows, count).float(), routing, rule, bias_X=place.randn(count).float())
    return [routing.experts, routing.weights, routing.slots, routing.offsets]


def new_routing(place: Place, rows: int, count: int, chosen: int) -> Routing:
    """Empty buffers for a routing."""
    return Routing(
        torch.zeros(rows, chosen, dtype=torch.int32, device=place.device),
        torch.zeros(rows, chosen, device=place.device),
        torch.zeros(rows * chosen, dtype=torch.int32, device=place.device),
        torch.zeros(count + 1, dtype=torch.int32, device=place.device),
    )


def run_experts(place: Place, rows: int, fmt: str) -> list[Tensor]:
    """A mixture in one of the formats."""
    count, chosen, inner, width = 16, 4, 192, 256
    x = Act(place.randn(rows, width))
    if fmt == "float":
        weight = ExpertsWeight(place.randn(count, 2 * inner, width), place.randn(count, width, inner))
    else:
        takes = ActFormat.INT8_TOKEN if fmt == "W8A8" else ActFormat.FLOAT
        gate_up = place.ints(-127, 128, count, 2 * inner, width, dtype=torch.int8)
        down = place.ints(-127, 128, count, width, inner, dtype=torch.int8)
        scales = place.scales(count, 2 * inner), place.scales(count, width)
        weight = ExpertsWeight(gate_up, down, *scales, takes)
        if takes is ActFormat.INT8_TOKEN:
            x = Act(place.ints(-127, 128, rows, width, dtype=torch.int8), place.scales(rows, 1))
    routing = new_routing(place, rows, count, chosen)
    route(place.randn(rows, count).float(), routing, RoutingRule(normalise=True))
    arena = StepArena(rows, place.device)
    arena.begin(rows)
    out, residual = place.empty(rows, width), place.randn(rows, width)
    scratch = ExpertsScratchLayout.of(weight, chosen, place.dtype).take(arena)
    experts(x, weight, routing, out, scratch, residual=residual, residual_gate=place.randn(rows, 1).float())
    return [out]


def run_rope_kv(place: Place, heads: int, kv_heads: int, width: int, *, int8: bool, normed: bool) -> list[Tensor]:
    """Queries, and the pages as they are read."""
    rows = 17
    cache, q_out = place.cache(rows, kv_heads, width, int8=int8), place.empty(rows, heads, width)
    qk_norm_rope_kv_write(
        place.randn(rows, (heads + 2 * kv_heads) * width),
        place.ints(0, 64, rows),
        torch.rand(64, width, generator=place.random).to(place.device),
        cache,
        place.put([row * BLOCK_SIZE + row % BLOCK_SIZE for row in range(rows)], torch.int64),
        q_out,
        q_norm=place.randn(width) if normed else None,
        k_norm=place.randn(width) if normed else None,
    )
    pages = cache.values.float() if cache.scale is None else cache.values.float() * cache.scale.float()[..., None]
    return [q_out, pages]


def run_attention(
    place: Place, heads: int, kv_heads: int, width: int, *, int8: bool, window: int | None, softcap: float | None = None
) -> list[Tensor]:
    """Decodes and chunks behind prefixes in one step, blocks in no order; with a cap there are sinks, too."""
    queries, lengths = [1, 1, 33, 1, 5], [1, 17, 600, 300, 16]
    widest = -(-max(lengths) // BLOCK_SIZE)
    cache = place.cache(len(lengths) * widest, kv_heads, width, int8=int8)
    tables = torch.randperm(len(lengths) * widest, generator=place.random).int().view(len(lengths), -1)
    tokens = sum(queries)
    starts = [sum(queries[:row]) for row in range(len(queries) + 1)]
    meta = AttentionMetadata(
        query_start_loc=place.put(starts, torch.int32),
        seq_lens=place.put(lengths, torch.int32),
        block_tables=tables.to(place.device),
        slot_mapping=place.put([0] * tokens, torch.int64),
        max_query_len=max(queries),
        max_seq_len=max(lengths),
        split_workspace=new_split_workspace(len(queries), heads, kv_heads, width, place.device),
    )
    out = Act(place.empty(tokens, heads * width))
    q = place.randn(tokens, heads, width)
    sinks = None if softcap is None else place.randn(heads).float()
    paged_attention(q, cache, meta, out, scale=width**-0.5, sliding_window=window, softcap=softcap, sinks=sinks)
    return [out.values]


def run_head(place: Place) -> list[Tensor]:
    """Embedded tokens, and logits of gathered rows."""
    table, hidden = place.randn(1000, 128), place.empty(33, 128)
    embed(place.ints(0, 1000, 33), table, hidden)
    logits = torch.empty(5, 1000, device=place.device)
    gather_lm_head(hidden, place.ints(0, 33, 5), LinearWeight(table), logits)
    return [hidden, logits]


def run_sample(place: Place) -> list[Tensor]:
    """Greedy rows and sampled ones: the same tokens, as random numbers are counted."""
    rows, vocab_size = 16, 5000
    # Fp32 logits and not rounded ones: no two are equal.
    logits = (torch.randn(rows, vocab_size, generator=place.random) * 3).to(place.device)
    index = place.put(list(range(rows)), torch.int64)
    params = SampleParams(
        rows=index,
        slots=index,
        temperature=torch.tensor([0.0, 1.0] * (rows // 2), device=place.device),
        seeds=index * 7,
        positions=index + 5,
        sample_indices=torch.zeros_like(index),
        top_k=place.put([40] * rows, torch.int64),
        top_p=torch.full((rows,), 0.9, device=place.device),
        min_p=None,
        workspace=new_sample_workspace(rows, vocab_size, place.device),
    )
    tokens, failed = torch.zeros_like(index), torch.zeros(rows, dtype=torch.bool, device=place.device)
    sample(logits, params, tokens, failed)
    return [tokens, failed]


def run_logprobs(place: Place) -> list[Tensor]:
    """Several pieces of a vocabulary, more tokens than one launch takes."""
    logits = (torch.randn(5, 5000, generator=place.random) * 3).to(place.device)
    rows, tokens = place.ints(0, 5, 70), place.ints(0, 5000, 70)
    values, top_values = torch.zeros(70, device=place.device), torch.zeros(70, 20, device=place.device)
    rank, top_ids = torch.zeros_like(rows), torch.zeros(70, 20, dtype=torch.int64, device=place.device)
    logprobs(logits, rows, tokens, LogprobsOut(values, rank, top_ids, top_values))
    return [values, rank, top_ids, top_values]


def run_expand_rows(place: Place) -> list[Tensor]:
    """A prompt of many blocks, a decode, and one at a new block's first place."""
    counts, lengths, new = [300, 1, 1], [300, 40, 33], [19, 0, 1]
    loc = [302 + sum(new[:row]) for row in range(4)]
    rows = StepRows(
        slots=place.put([2, 0, 1], torch.int32),
        carried=place.put([0, 1, 1], torch.int32),
        table_lens=place.put([0, 3, 2], torch.int32),
        new_block_loc=place.put(loc, torch.int32),
        logit_start_loc=place.put([0, 1, 2, 3], torch.int32),
        feed=place.ints(0, 1000, loc[-1], dtype=torch.int32),
    )
    tables = place.ints(0, 1000, 3, 24, dtype=torch.int32)
    ids, positions, mapping = (torch.zeros(302, dtype=torch.int64, device=place.device) for _ in range(3))
    meta = AttentionMetadata(
        query_start_loc=place.put([0, 300, 301, 302], torch.int32),
        seq_lens=place.put(lengths, torch.int32),
        block_tables=torch.zeros(3, 24, dtype=torch.int32, device=place.device),
        slot_mapping=mapping,
        max_query_len=max(counts),
        max_seq_len=max(lengths),
    )
    out = StepTokens(ids, positions, place.put([0] * 3, torch.int64))
    expand_rows(rows, tables, place.put([7, 8, 9], torch.int64), out, meta, block_size=BLOCK_SIZE)
    return [ids, positions, out.logit_indices, mapping, meta.block_tables, tables]


def cases() -> Iterator[tuple[str, float, Run]]:
    """Name, tolerance and case; the first of each op is the smallest."""
    for rows, width in ((1, 576), (17, 4096)):
        yield f"add_norm {rows}x{width}", _BF16, partial(run_add_norm, rows=rows, width=width)
        yield f"norm_add_norm {rows}x{width}", _BF16, partial(run_norm_add_norm, rows=rows, width=width)
        yield f"layer_norm {rows}x{width}", _BF16, partial(run_layer_norm, rows=rows, width=width)
        yield f"embed positions {rows}x{width}", _BF16, partial(run_positions, rows=rows, width=width)
    for fmt in ("W8A8", "W8A16", "float"):
        for rows in (1, 17, 64, 300):
            for activation in Activation:
                run = partial(run_linear, rows=rows, n=384, k=512, fmt=fmt, activation=activation)
                yield (
                    f"linear {fmt} {rows}{'' if activation is Activation.NONE else f' {activation.value}'}",
                    _BF16,
                    run,
                )
    for heads, kv_heads, width in ((9, 3, 64), (32, 8, 128), (4, 2, 80), (4, 1, 96), (2, 1, 256)):
        for int8 in (False, True):
            shape = f"{heads}/{kv_heads}x{width}{' int8' if int8 else ''}"
            tolerance = _INT8_KV if int8 else _BF16
            rope = partial(run_rope_kv, heads=heads, kv_heads=kv_heads, width=width, int8=int8, normed=int8)
            yield f"qk_norm_rope_kv_write {shape}", tolerance, rope
            for window in (None, 100):
                run = partial(run_attention, heads=heads, kv_heads=kv_heads, width=width, int8=int8, window=window)
                yield f"paged_attention {shape} window {window}", _BF16, run
            yield f"paged_attention {shape} softcap and sinks", _BF16, partial(run, softcap=2.0)
    for rows in (17, 300):
        yield f"route {rows}", _FP32, partial(run_route, rows=rows, count=128, chosen=8)
        yield f"route in groups {rows}", _FP32, partial(run_grouped_route, rows=rows, count=256, chosen=8)
    for fmt in ("W8A8", "W8A16", "float"):
        for rows in (1, 17, 300):
            # An int8 value of the rounded row may be the next one.
            tolerance = _INT8_KV if fmt == "W8A8" else 2 * _BF16
            yield f"experts {fmt} {rows}", tolerance, partial(run_experts, rows=rows, fmt=fmt)
    yield "embed and gather_lm_head", _BF16, run_head
    yield "sample", _EXACT, run_sample
    yield "logprobs", _FP32, run_logprobs
    yield "expand_rows", _EXACT, run_expand_rows


def error_of(got: Tensor, expected: Tensor) -> float:
    """Relative error by norms; infinite where something is not a number."""
    got, expected = got.double().cpu(), expected.double()
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--smallest", action="store_true", help="one case an op: for the sanitizer")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth case from I")
    parser.add_argument("--processes", type=int, default=1, help="that share the cases: most of it is compiling")


def main() -> None:
    """Emits a row a case; exit code 1 if one is off."""
    stage = Stage("correctness", __doc__, _options)
    processes = stage.args.processes
    if processes > 1:
        command = [sys.executable, "-m", "benchmarks.gpu.correctness", *sys.argv[1:], "--processes", "1", "--part"]
        parts = [subprocess.Popen([*command, str(part), str(processes)]) for part in range(processes)]
        codes = [part.wait() for part in parts]
        raise SystemExit(max(map(abs, codes)))
    first, step = stage.args.part
    off = [name for name, tolerance, run in _chosen(stage)[first::step] if not _holds(stage, name, tolerance, run)]
    if off:
        raise SystemExit(f"{len(off)} cases are off")


def _chosen(stage: Stage) -> list[tuple[str, float, Run]]:
    chosen = list(cases())
    if stage.args.smallest:
        smallest = {name.split()[0]: (name, tolerance, run) for name, tolerance, run in reversed(chosen)}
        chosen = list(smallest.values())
    return chosen


def _holds(stage: Stage, name: str, tolerance: float, run: Run) -> bool:
    """Emits a case's row; one that raises costs no other its answer."""
    mode = dispatch.Mode.INTERPRET if stage.device.type == "cpu" else dispatch.Mode.AUTO
    row = {"case": name, "tolerance": tolerance}
    try:
        dispatch.configure(dispatch.Mode.REFERENCE, threads=1)
        expected = run(Place(_CPU, torch.float32, torch.Generator().manual_seed(1)))
        dispatch.configure(mode, threads=1)
        got = run(Place(stage.device, torch.bfloat16, torch.Generator().manual_seed(1)))
        error = max(map(error_of, got, expected))
    except Exception as e:  # noqa: BLE001 whatever it is, it is this case's finding
        stage.emit({**row, "ok": False, "raised": f"{type(e).__name__}: {e}"[:2000]})
        return False
    stage.emit({**row, "error": error, "ok": error <= tolerance})
    return error <= tolerance


if __name__ == "__main__":
    main()
