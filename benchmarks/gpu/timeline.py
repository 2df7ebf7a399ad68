"""Where a step's time goes on the device: by kernel, and between one decode and the next.

The profiler sees every kernel within a graph. A step begins with ``expand_rows``; the gap before it is the time in
which the device had no kernel to run, whatever the host was doing. A kernel that starts while the one before it still
runs (programmatic dependent launch) is charged from that one's end: kernels' times and gaps add up to the step's.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.engine import FORMATS
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.session import MAX_STEP_TOKENS, Session, decode_output
from benchmarks.gpu.stage import Stage

FIRST_KERNEL = "_expand_rows"
_STEPS = 24
_SHOWN = 16
_COPIES = ("Memcpy", "Memset")


class Span(NamedTuple):
    """A kernel on the device; microseconds."""

    name: str
    start: float
    end: float


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="qwen3-8b")
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prefills", type=int, nargs="*", default=[8192])
    parser.add_argument("--layers", type=int, help="fewer layers, to try the stage")


def main() -> None:
    """Profiles one model in one format."""
    stage = Stage("timeline", __doc__, _options)
    args = stage.args
    budget = max([*args.prefills, MAX_STEP_TOKENS])
    room = args.context + decode_output(max(args.batches), args.context, _STEPS, budget)
    longest = max([*args.prefills, room]) + 1
    session = Session(
        args.model,
        num_tokens=max(max(args.batches) * room, longest),
        num_layers=args.layers,
        device=args.device,
        max_num_seqs=max(args.batches),
        max_num_batched_tokens=budget,
        max_logit_rows=max(args.batches),
        max_model_len=longest,
        **FORMATS[args.format],
    )
    activities = [ProfilerActivity.CUDA] if stage.device.type == "cuda" else [ProfilerActivity.CPU]
    for batch in args.batches:
        session.decode(batch, 16, 2)  # compiles and records
        profiler = profile(activities=activities)
        session.decode(batch, args.context, _STEPS, around=profiler)
        row = {"model": args.model, "format": args.format, "layers": args.layers, "decode": batch}
        stage.emit({**row, "context": args.context, **summary(spans_of(profiler))})
    for length in args.prefills:
        session.prefill(length)
        with profile(activities=activities) as profiler:
            session.prefill(length)
        row = {"model": args.model, "format": args.format, "layers": args.layers, "prefill": length}
        spans = sorted(spans_of(profiler), key=lambda span: span.start)
        stage.emit({**row, "kernels": _largest(spans, 1)})


def spans_of(profiler: profile) -> list[Span]:
    """The device's kernels, without copies, which run beside them."""
    return [
        Span(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()  # type: ignore[no-untyped-call]
        if event.device_type.name == "CUDA" and not event.name.startswith(_COPIES)
    ]


def summary(spans: Sequence[Span]) -> dict[str, Any]:
    """Figures of the whole steps among the spans: time, gaps between steps, and the kernels that take most of it."""
    ordered = sorted(spans, key=lambda span: span.start)
    firsts = [index for index, span in enumerate(ordered) if span.name.startswith(FIRST_KERNEL)]
    if len(firsts) < 2:
        return {"profiled_steps": 0}
    whole = ordered[firsts[0] : firsts[-1]]
    steps = len(firsts) - 1
    gaps, busy_until = list[float](), whole[0].start
    for span in whole:
        if span.name.startswith(FIRST_KERNEL) and span is not whole[0]:
            gaps.append(max(0.0, span.start - busy_until))
        busy_until = max(busy_until, span.end)
    gaps.append(max(0.0, ordered[firsts[-1]].start - busy_until))
    step_us = (ordered[firsts[-1]].start - whole[0].start) / steps
    return {
        "profiled_steps": steps,
        "step_us": round(step_us, 1),
        "gap_us_p50": round(statistics.median(gaps), 1),
        "gap_us_max": round(max(gaps), 1),
        "busy_share": round(sum(_charged(whole)) / steps / step_us, 4),
        "kernels": _largest(whole, steps),
    }


def _charged(spans: Sequence[Span]) -> Iterator[float]:
    """Time of each span from its start, or from the end of the spans before it, to its end.

    Args:
        spans: spans in the order of their starts.
    """
    busy_until = spans[0].start if spans else 0.0
    for span in spans:
        yield max(0.0, span.end - max(span.start, busy_until))
        busy_until = max(busy_until, span.end)


def _largest(spans: Sequence[Span], steps: int) -> dict[str, dict[str, float]]:
    """The kernels that take most of the time, each with its share of a step."""
    took, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for span, charged in zip(spans, _charged(spans), strict=True):
        took[span.name] += charged
        calls[span.name] += 1
    most = sorted(took, key=lambda name: -took[name])[:_SHOWN]
    return {name: {"us": round(took[name] / steps, 1), "calls": round(calls[name] / steps, 2)} for name in most}


if __name__ == "__main__":
    main()
