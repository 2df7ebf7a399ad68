"""What the benchmarks of native ops share: timing, shares of the ceilings, rows."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.kernels import dispatch
from app.kernels.dispatch import Call
from app.kernels.native.program import Program
from benchmarks import rows

RESULTS = rows.RESULTS / "kernels_cpu.jsonl"
CEILINGS = {"GB/s": 39.0, "int8 GOP/s": 1840.0, "bf16 GOP/s": 875.0}
"""Measured on the 2-core Zen 5 machine whose results are kept, with two threads."""
PAST_CACHES = 160_000_000
"""Bytes of copies to rotate through so that no cache holds the next one."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every such benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--isa", help="instruction set; the best when absent")
    options.add_argument("--save", action="store_true", help=f"append the rows to {RESULTS.name}")
    return options


def seconds(run: Callable[[], None], repeats: int, calls: int = 1) -> dict[str, float]:
    """p20, p50 and p80 of the time of one of the ``calls`` in ``run``, after one run to warm up."""
    run()
    return _quantiles([_timed(run) / calls for _ in range(max(repeats, 2))])


def alternating(
    first: Callable[[], None], second: Callable[[], None], repeats: int, calls: int = 1
) -> tuple[dict[str, float], dict[str, float]]:
    """p20, p50 and p80 of the times of two kinds of calls, run in turn, so that other load meets both."""
    first()
    second()
    taken = [(_timed(first) / calls, _timed(second) / calls) for _ in range(max(repeats, 2))]
    return _quantiles([one for one, _ in taken]), _quantiles([other for _, other in taken])


def _timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _quantiles(taken: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(taken, n=10, method="inclusive")
    return {"p20_s": deciles[1], "p50_s": deciles[4], "p80_s": deciles[7]}


def shares(median_s: float, nbytes: int, operations: int, kind: str) -> dict[str, float]:
    """Rates, and the larger of their shares of the ceilings: what of the machine is used.

    Args:
        nbytes: bytes that have to come from memory.
        kind: type of the operations, ``int8`` or ``bf16``.
    """
    gb, gop = nbytes / median_s / 1e9, operations / median_s / 1e9
    share = max(gb / CEILINGS["GB/s"], gop / CEILINGS[f"{kind} GOP/s"])
    return {"gb_per_s": round(gb, 2), "gop_per_s": round(gop, 1), "share_of_ceiling": round(share, 3)}


def measured(
    calls: list[Call], repeats: int, *, nbytes: int, operations: int, kind: str, **size: Any
) -> dict[str, object]:
    """Time, rates and shares of one of some native calls, on operands of their own, and by what they were run.

    Args:
        nbytes, operations: bytes and operations of one call; see :func:`shares`.
        size: size of the step, as :meth:`Program.run` takes it.
    """
    program = Program(dispatch.pool(), calls, dispatch.isa())
    taken = seconds(lambda: program.run(**size), repeats, len(calls))
    rates = shares(taken["p50_s"], nbytes, operations, kind)
    return {"isa": dispatch.isa(), "threads": dispatch.pool().threads, **taken, **rates}


def report(bench: str, row: Mapping[str, Any], *, save: bool) -> None:
    """Prints a row as JSON, and keeps it when asked."""
    output: Path | None = RESULTS if save else None
    rows.report({**rows.context(bench), **row}, output)
