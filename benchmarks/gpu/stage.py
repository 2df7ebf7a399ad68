"""What the stages share: the device, timing, rows."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks import rows

Run = Callable[[], object]


class Stage:
    """A stage under way: its options, and where its rows go."""

    def __init__(
        self, name: str, description: str | None, options: Callable[[argparse.ArgumentParser], None] | None = None
    ) -> None:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{name}", description=description)
        parser.add_argument("--output", type=Path, help="file that gains a row a line")
        parser.add_argument("--device", default="cuda", help="cpu: only to try the stage, figures mean nothing")
        if options is not None:
            options(parser)
        self.args = parser.parse_args()
        self.name = name
        self.device = torch.device(self.args.device)

    def emit(self, row: Mapping[str, Any]) -> None:
        """Prints a row and appends it."""
        rows.report({"stage": self.name, **row}, self.args.output)


def device_context(device: torch.device) -> dict[str, Any]:
    """Device and versions, for a report's first row."""
    context: dict[str, Any] = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        context |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
        }
    return context


def seconds(
    calls: Sequence[Run], device: torch.device, *, repeats: int = 7, target_s: float = 0.05
) -> dict[str, float]:
    """p20, p50 and p80 of the time of one call, over repeats of about ``target_s`` each.

    ``calls`` do the same work on different memory, one after the other, so that none finds its data in the caches. On a
    GPU they are captured in one graph: what is timed is the device, not the launches.
    """
    if device.type != "cuda":
        return _summary([_host_seconds(calls) for _ in range(2)])
    graph = _captured(calls)
    _event_seconds(graph.replay, 1)
    replays = max(1, int(target_s / max(_event_seconds(graph.replay, 1), 1e-6)))
    return _summary([_event_seconds(graph.replay, replays) / replays / len(calls) for _ in range(repeats)])


def _captured(calls: Sequence[Run]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles, makes workspaces
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _event_seconds(run: Run, times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _host_seconds(calls: Sequence[Run]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


def _summary(taken: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(taken, n=10, method="inclusive")
    return {"p20_s": deciles[1], "p50_s": deciles[4], "p80_s": deciles[7]}


def copies_past_l2(nbytes: int, device: torch.device) -> int:
    """Copies of ``nbytes`` to rotate through so that the next one is in no cache: four times the L2."""
    if device.type != "cuda":
        return 2
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, -(-4 * l2 // max(nbytes, 1)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows written so far."""
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def ceilings(path: Path | None) -> dict[str, float]:
    """What the stage ``ceilings`` measured: ``read_gb_per_s``, ``bf16_tflop_per_s`` and so on; empty without it."""
    found = [row for row in (read_rows(path) if path else []) if row.get("stage") == "ceilings" and "figure" in row]
    return {str(row["figure"]): float(row["value"]) for row in found}
