"""Microseconds a sampled row, one thread, a row a step: python -m benchmarks.kernels.bench_sample"""

from __future__ import annotations

import json
import statistics
import time

import torch

from app.kernels import dispatch
from app.kernels.dispatch import Mode
from app.kernels.native.program import Program
from app.kernels.sample import SampleParams, sample

VOCABULARIES = (49152, 151936)
CASES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05},
}
ROWS = 16
STEPS = 200


def measure(logits: torch.Tensor, case: dict[str, float]) -> float:
    """Median microseconds, over rows of logits in turn."""
    one = torch.zeros(1, dtype=torch.int64)
    params = SampleParams(
        rows=one.clone(),
        slots=one,
        temperature=torch.tensor([case.get("temperature", 1.0)]),
        seeds=one,
        positions=one.clone(),
        sample_indices=one,
        top_k=torch.tensor([int(case["top_k"])]) if "top_k" in case else None,
        top_p=torch.tensor([case["top_p"]]) if "top_p" in case else None,
        min_p=torch.tensor([case["min_p"]]) if "min_p" in case else None,
    )
    with dispatch.recording() as calls:
        sample(logits, params, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))
    program = Program(dispatch.pool(), calls, dispatch.isa())
    times = []
    for step in range(STEPS):
        params.rows.fill_(step % ROWS)
        params.positions.fill_(step)
        began = time.perf_counter()
        program.run(samples=1)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def main() -> None:
    """Normal logits of standard deviation 3."""
    dispatch.configure(Mode.STRICT, 1)
    rows = []
    for vocab_size in VOCABULARIES:
        logits = torch.randn(ROWS, vocab_size, generator=torch.Generator().manual_seed(0)) * 3
        for name, case in CASES.items():
            microseconds = round(measure(logits, case), 1)
            rows.append({"op": "sample", "vocab_size": vocab_size, "case": name, "us": microseconds})
            print(f"{vocab_size:>8} {name:<22} {microseconds:8.1f} us")
    print(json.dumps({"isa": dispatch.isa(), "rows": rows}))


if __name__ == "__main__":
    main()
