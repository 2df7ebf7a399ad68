"""The engine on random weights: decode at several batch sizes, prefill, in several number formats.

Each figure stands beside its limit: the bytes that a step has to read over the bandwidth that the stage ``ceilings``
measured, or the operations of a prefill over the rate of a large product.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from benchmarks.gpu.models import MODELS
from benchmarks.gpu.session import MAX_STEP_TOKENS, Figures, Session, decode_output
from benchmarks.gpu.stage import Stage, ceilings

FORMATS: dict[str, dict[str, str]] = {
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int8 weights": {"dtype": "bfloat16", "quantization": "int8_weight_only"},
    "int8, int8 KV": {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"},
}
_STEPS = 64


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prefills", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--eager", action="store_true", help="without graphs")
    parser.add_argument("--layers", type=int, help="fewer layers, to try the stage")


def main() -> None:
    """Measures one model in one format."""
    stage = Stage("engine", __doc__, _options)
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
        enforce_eager=args.eager,
        **FORMATS[args.format],
    )
    runner = session.runner
    limits = Limits(session, args.model, ceilings(args.output))
    common = {"model": args.model, "format": args.format, "eager": args.eager, "layers": args.layers}
    stage.emit({**common, "weight_bytes": runner.info.weight_bytes, "kv_cache_bytes": runner.info.kv_cache_bytes})
    for length in args.prefills:
        session.prefill(length)  # compiles
        figures = min((session.prefill(length) for _ in range(3)), key=lambda figures: figures.seconds)
        stage.emit({**common, "prefill": length, **_rates(figures), **limits.prefill(figures)})
    outside = _driver_bytes(stage.device)
    for batch in args.batches:
        session.decode(batch, 16, 2)  # compiles and records what the longer context takes too
        figures = session.decode(batch, args.context, _STEPS)
        row = {**common, "decode": batch, "context": args.context, **_rates(figures), **_steps(figures)}
        stage.emit({**row, **limits.decode(figures, batch, args.context + _STEPS // 2)})
    if stage.device.type == "cuda":
        # Graphs for the most part, and the modules of newly compiled kernels.
        gained = _driver_bytes(stage.device) - outside
        peak = torch.cuda.max_memory_allocated()
        graphs = 0 if args.eager else len(args.batches)
        stage.emit({**common, "peak_memory_bytes": peak, "driver_bytes": gained, "graphs": graphs})


def _driver_bytes(device: torch.device) -> int:
    """Memory in use that torch's allocator knows nothing of."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _rates(figures: Figures) -> dict[str, float]:
    return {"seconds": round(figures.seconds, 4), "tokens_per_s": round(figures.tokens_per_s, 1)}


def _steps(figures: Figures) -> dict[str, Any]:
    records = figures.records
    return {
        "step_ms": round(statistics.median(record.seconds for record in records) * 1e3, 3),
        "replayed": sum(record.replayed for record in records),
        "steps": len(records),
    }


class Limits:
    """What the device allows, from its measured ceilings; nothing without them."""

    def __init__(self, session: Session, model: str, measured: dict[str, float]) -> None:
        spec = session.runner.info.kv_cache
        self._kv_bytes = sum(group.bytes_per_block for group in spec.groups) / spec.block_size
        shape = MODELS[model]
        table = shape["vocab_size"] * shape["hidden_size"] * 2
        # A decode step looks up a few rows of the embedding; the head it reads whole.
        self._weight_bytes = session.runner.info.weight_bytes - (0 if shape["tie_word_embeddings"] else table)
        self._products = session.runner.info.num_parameters - shape["vocab_size"] * shape["hidden_size"] * 2
        self._int8 = session.config.quantization == "int8"  # and not of weights alone
        self._measured = measured

    def decode(self, figures: Figures, batch: int, context: int) -> dict[str, float]:
        """Share of the bandwidth bound of a step."""
        if "read_gb_per_s" not in self._measured:
            return {}
        nbytes = self._weight_bytes + batch * context * self._kv_bytes
        bandwidth = max(self._measured["read_gb_per_s"], self._measured["copy_gb_per_s"]) * 1e9
        compute = 2 * batch * self._products / (self._rate() * 1e12)
        limit = batch / max(nbytes / bandwidth, compute)
        return {"limit_tokens_per_s": round(limit, 1), "share_of_limit": round(figures.tokens_per_s / limit, 3)}

    def prefill(self, figures: Figures) -> dict[str, float]:
        """Share of the rate of a large product."""
        if "bf16_tflop_per_s" not in self._measured:
            return {}
        limit = self._rate() * 1e12 / (2 * self._products)
        return {"limit_tokens_per_s": round(limit, 1), "share_of_limit": round(figures.tokens_per_s / limit, 3)}

    def _rate(self) -> float:
        bf16 = self._measured["bf16_tflop_per_s"]
        return self._measured.get("int8_top_per_s", bf16) if self._int8 else bf16


if __name__ == "__main__":
    main()
