"""Where a step's time goes: each op of a recorded step, on the real model.

    python -m benchmarks.step_profile [MODEL] [--rows 16] [--context 256] [--prefix 0] [--prefill 0] [--set FIELD=VALUE]

Prints one line for each kind of op: time a step as the calling thread saw it, share, and calls; what a step costs
besides; last line JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict

import click
import msgspec
import torch

from app.contract.config import EngineConfig
from app.contract.request import SamplingParams
from app.contract.step import ScheduledRow, SlotInit, StepPlan
from app.runner.model_runner import ModelRunner
from app.runner.start import make_runner
from app.store.home import Store
from app.store.models import resolve

_BLOCK = 16


def _bind(slot: int, prompt_len: int) -> SlotInit:
    params = SamplingParams(temperature=0.0)
    return SlotInit(slot=slot, sampling=params, seed=0, sample_index=0, prompt_len=prompt_len, stop_token_ids=[])


def _step(rows: list[ScheduledRow], slots: list[SlotInit]) -> StepPlan:
    tokens = sum(row.num_tokens for row in rows)
    logits = sum(row.num_tokens - row.logits_start for row in rows)
    return StepPlan(step=0, slots=slots, rows=rows, num_tokens=tokens, num_logit_rows=logits)


def _blocks(runner: ModelRunner, slot: int, length: int, per_slot: int, shared: int = 0) -> list[list[int]]:
    """Blocks of a slot in each KV cache group, the first ``shared`` those of slot 0."""
    blocks = [(0 if i < shared else slot * per_slot) + i for i in range(-(-length // _BLOCK))]
    return [blocks for _ in runner.info.kv_cache.groups]


def _fill(runner: ModelRunner, rows: int, context: int, per_slot: int, prefix: int) -> None:
    """Gives every slot a context of that length; its pages hold what the model made of it."""
    shared = prefix // _BLOCK
    for slot in range(rows):
        ids = [(7 * i + (slot if i >= shared * _BLOCK else 0)) % 40_000 + 100 for i in range(context)]
        row = ScheduledRow(
            slot=slot,
            start=0,
            num_tokens=context,
            token_ids=ids,
            new_block_ids=_blocks(runner, slot, per_slot * _BLOCK, per_slot, shared),
            logits_start=context - 1,
            num_samples=1,
        )
        runner.collect(runner.submit(_step([row], [_bind(slot, context)])))


def _decode(rows: int, position: int) -> StepPlan:
    return _step(
        [
            ScheduledRow(
                slot=slot,
                start=position,
                num_tokens=1,
                token_ids=None,
                new_block_ids=[],
                logits_start=0,
                num_samples=1,
            )
            for slot in range(rows)
        ],
        [],
    )


@click.command()
@click.argument("model", default="smollm2-135m")
@click.option("--rows", default=1, help="Sequences that decode.")
@click.option("--context", default=256, help="Tokens of each before the first measured step.")
@click.option("--prefix", default=0, help="Tokens of the context that are the same for all, in the same blocks.")
@click.option("--prefill", default=0, help="Measure one prompt of this many tokens instead.")
@click.option("--steps", default=100)
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Of EngineConfig, e.g. quantization=int8."
)
def main(model: str, rows: int, context: int, prefix: int, prefill: int, steps: int, settings: tuple[str, ...]) -> None:
    """Profiles the recorded step of MODEL."""
    files = resolve(model, Store())
    given = dict(setting.split("=", 1) for setting in settings)
    per_slot = -(-(max(context, prefill) + steps + 2) // _BLOCK)
    base = {
        "model_dir": str(files.directory),
        "weights": [str(path) for path in files.weights],
        "num_blocks": rows * per_slot,
        "max_num_batched_tokens": max(1024, prefill, context),
        "dtype": "auto",
        "quantization": "auto",
        **given,
    }
    runner = make_runner(msgspec.convert(base, EngineConfig, strict=False), lambda _: None)
    walls, inner = [], []
    if not prefill:
        _fill(runner, rows, context, per_slot, prefix)
    names, op_ns = runner.profile_ops()
    for index in range(steps):
        if prefill:
            ids = [(7 * i + index) % 40_000 + 100 for i in range(prefill)]
            row = ScheduledRow(
                slot=0,
                start=0,
                num_tokens=prefill,
                token_ids=ids,
                new_block_ids=_blocks(runner, 0, prefill, per_slot),
                logits_start=prefill - 1,
                num_samples=1,
            )
            step = _step([row], [_bind(0, prefill)])
        else:
            step = _decode(rows, context + index)
        before = sum(op_ns)
        began = time.perf_counter()
        runner.collect(runner.submit(step))
        walls.append(time.perf_counter() - began)
        inner.append((sum(op_ns) - before) / 1e9)
    _report(names, list(op_ns), walls, inner, rows=rows, context=context, prefix=prefix, prefill=prefill)


def _report(names: list[str], op_ns: list[int], walls: list[float], inner: list[float], **shape: int) -> None:
    steps = len(walls)
    times: dict[str, list[float]] = defaultdict(list)
    for name, nanoseconds in zip(names, op_ns, strict=True):
        times[name].append(nanoseconds / 1e3 / steps)
    total = sum(map(sum, times.values()))
    for name, values in sorted(times.items(), key=lambda item: -sum(item[1])):
        print(f"{name:12} {sum(values):9.1f} us  {100 * sum(values) / total:5.1f} %  {len(values):4} calls")
    wall, kernels = statistics.median(walls), statistics.median(inner)
    row = {
        **shape,
        "torch": torch.__version__,
        "step_ms": round(wall * 1e3, 3),
        "kernels_ms": round(kernels * 1e3, 3),
        "host_ms": round((wall - kernels) * 1e3, 3),
    }
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
