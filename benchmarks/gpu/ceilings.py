"""What the device does at best: memory copied and read, matrices multiplied, a kernel launched from a graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.stage import Stage, device_context, seconds

_BYTES = {"cuda": 2 << 30, "cpu": 1 << 20}
_SIDE = {"cuda": 8192, "cpu": 128}


def main() -> None:
    """Measures and emits a row a ceiling."""
    stage = Stage("ceilings", __doc__)
    device = stage.device
    stage.emit(device_context(device))

    def figure(name: str, value: float) -> None:
        stage.emit({"figure": name, "value": round(value, 6)})

    _memory(device, figure)
    side = _SIDE[device.type]
    operations = 2 * side**3
    # Random data: zeros draw less power and run faster than any real product.
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    figure("bf16_tflop_per_s", operations / seconds([lambda: torch.mm(a, b.t(), out=product)], device)["p50_s"] / 1e12)
    if device.type == "cuda":
        a8, b8 = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        sums = torch.empty(side, side, dtype=torch.int32, device=device)
        multiplied = seconds([lambda: torch._int_mm(a8, b8.t(), out=sums)], device)
        figure("int8_top_per_s", operations / multiplied["p50_s"] / 1e12)
    small = torch.zeros(1, device=device)
    figure("launch_us", seconds([lambda: small.add_(1.0)] * 64, device)["p50_s"] * 1e6)


def _memory(device: torch.device, figure: Callable[[str, float], None]) -> None:
    source = torch.empty(_BYTES[device.type] // 2, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    copied = seconds([lambda: target.copy_(source)], device)
    figure("copy_gb_per_s", 2 * source.nbytes / copied["p50_s"] / 1e9)
    total, words = torch.empty((), dtype=torch.float32, device=device), source.view(torch.float32)
    read = seconds([lambda: torch.sum(words, dim=0, out=total)], device)
    figure("read_gb_per_s", source.nbytes / read["p50_s"] / 1e9)


if __name__ == "__main__":
    main()
