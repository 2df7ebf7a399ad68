"""Decode of attention over latents, the whole sublayer of a DeepSeek-V2-Lite, against what this CPU reads a second.

``python -m benchmarks.kernels.bench_latent_attention [--threads N] [--experts] [--save]``

Weights are int8 but for each head's two matrices, which are bf16, like latents. Layers are different memory, more of
it than caches hold. A row's ``share_of_reads`` is the time that reading weights and latents once would take, at the
rate at which torch summed a tensor just before, over the step's; ``ops`` is each op's time a layer, in microseconds.
``--experts``: whole layers, each with its routing and as many experts as that model chooses and shares, for one row.
"""

from __future__ import annotations

import time
from collections import defaultdict
from ctypes import c_uint64
from typing import Any

import torch

from app.kernels import dispatch
from app.kernels.dispatch import Call, Mode, recording
from app.kernels.int8 import quantize_groups
from app.kernels.native.program import Program
from app.kernels.types import Act, AttentionMetadata, LayerLatents, PackedExperts, StepArena
from app.layers.config import LatentConfig, Rope
from app.layers.latent_attention import LatentAttention
from app.layers.rotary import rope_table
from app.quant.placement import Placement, WeightFormat
from benchmarks.kernels import bench_experts, measure

CPU = torch.device("cpu")
WIDTH, LAYERS, BLOCK = 2048, 27, 16
CONFIG = LatentConfig(
    num_heads=16,
    q_rank=None,
    kv_rank=512,
    nope_dim=128,
    rope_dim=64,
    v_dim=128,
    scale=192**-0.5,
    rope=Rope(theta=1e4, width=64),
    interleaved=True,
    norm_eps=1e-6,
)
CASES = [(1, 256), (1, 1024), (1, 4096), (1, 16384), (16, 256), (16, 1024), (16, 4096)]
"""Rows, and positions of each."""
_READ_ELEMENTS = 1 << 28
_EXPERTS = "deepseek-v2-lite"
_MIXTURES = 4
"""Layers of experts that differ: no cache holds so many."""


def read_rate(threads: int) -> float:
    """Bytes a second of the fastest of a few sums of 1 GiB."""
    torch.set_num_threads(threads)
    values, best = torch.ones(_READ_ELEMENTS), float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - begin)
    torch.set_num_threads(1)
    return values.nbytes / best


def new_layer(rope: torch.Tensor, placement: Placement) -> LatentAttention:
    """A layer of random weights."""
    layer = LatentAttention(CONFIG, WIDTH, rope_PR=rope, placement=placement)
    for destination in layer.destinations("").values():
        destination.copy_(torch.randn(tuple(destination.shape)) * 0.02)
    return layer


def record(
    layers: list[LatentAttention], mixtures: list[PackedExperts], rows: int, context: int, arena: StepArena
) -> tuple[list[Call], int]:
    """The calls of a decode through the layers, and bytes of weights and latents that it reads."""
    blocks = rows * -(-context // BLOCK)
    meta = AttentionMetadata(
        query_start_loc=torch.arange(rows + 1, dtype=torch.int32),
        seq_lens=torch.full((rows,), context, dtype=torch.int32),
        block_tables=torch.randperm(blocks).view(rows, -1).int(),
        slot_mapping=torch.arange(rows) * BLOCK,
        max_query_len=1,
        max_seq_len=context,
    )
    positions = torch.full((rows,), context - 1)
    arena.begin(rows)
    buffers = layers[0].layout.take(arena)
    out = Act(arena.take(WIDTH, torch.float32))
    values, scale = quantize_groups(torch.randn(rows, WIDTH))
    buffers.x.values.copy_(values)
    if buffers.x.scale is not None:
        buffers.x.scale.copy_(scale)
    nbytes = sum(weight.nbytes for weight in layers[0].destinations("").values()) * len(layers)
    calls: list[Call] = []
    for index, layer in enumerate(layers):
        cache = LayerLatents(torch.randn(blocks, BLOCK, CONFIG.width, dtype=torch.bfloat16))
        nbytes += rows * context * CONFIG.width * cache.values.itemsize
        with recording() as attention:
            layer(buffers, out, positions, cache, meta)
        calls += attention
        if mixtures:
            _, chosen, inner, width = bench_experts.SHAPES[_EXPERTS]
            calls += bench_experts.expert_calls(_EXPERTS, mixtures[index % len(mixtures)], rows, used=1)
            nbytes += rows * chosen * 3 * inner * width
    return calls, nbytes


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--experts", action="store_true", help="whole layers; cases of one row alone")
    options.add_argument("--case", type=int, help="number of the one case to measure; all when absent")
    args = options.parse_args()
    dispatch.configure(Mode.STRICT, args.threads, args.isa)
    placement = Placement(torch.float32, CPU, WeightFormat.PACKED_INT8)
    rope = rope_table(CONFIG.rope, max(context for _, context in CASES), CPU)
    layers = [new_layer(rope, placement) for _ in range(LAYERS)]
    mixtures = [bench_experts.make_experts(_EXPERTS, torch.int8) for _ in range(_MIXTURES if args.experts else 0)]
    for rows, context in CASES if args.case is None else [CASES[args.case]]:
        if args.experts and rows > 1:  # how many experts are read would be chance
            continue
        arena = StepArena(rows, CPU)
        calls, nbytes = record(layers, mixtures, rows, context, arena)
        program = Program(dispatch.pool(), calls, dispatch.isa())
        step: dict[str, Any] = {"tokens": rows, "rows": rows, "max_seq_len": context, "max_query_len": 1}
        rate = read_rate(args.threads)
        taken = measure.seconds(lambda: program.run(**step), args.repeats)  # noqa: B023
        op_ns = (c_uint64 * len(calls))()
        program.run(**step, op_ns=op_ns)
        times: dict[str, float] = defaultdict(float)
        for name, nanoseconds in zip(program.names, op_ns, strict=True):
            times[name] += nanoseconds / 1e3 / LAYERS
        row = {
            "isa": dispatch.isa(),
            "threads": args.threads,
            "rows": rows,
            "experts": args.experts,
            "context": context,
            **taken,
            "read_gb_per_s": round(rate / 1e9, 2),
            "gb_per_s": round(nbytes / taken["p50_s"] / 1e9, 2),
            "share_of_reads": round(nbytes / rate / taken["p50_s"], 3),
            "ops": {name: round(us, 1) for name, us in times.items()},
        }
        measure.report("latent_attention", row, save=args.save)


if __name__ == "__main__":
    main()
