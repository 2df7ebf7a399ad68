"""The headline: 256 requests of 1,024 tokens in and 1,024 out at once, on the shape of Qwen3-8B, in process."""

from __future__ import annotations

import argparse

from benchmarks.gpu.engine import FORMATS
from benchmarks.gpu.session import workload_options, workload_session
from benchmarks.gpu.stage import Stage

_SECONDS = {("qwen3-8b", "bf16", 256, 1024, 1024): 30.85}
"""Seconds that SGLang takes on one H200, by its published figures."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    workload_options(parser, requests=256, output_tokens=1024)


def main() -> None:
    """Runs it once, after a short warm-up."""
    stage = Stage("headline", __doc__, _options)
    args = stage.args
    session = workload_session(args, **FORMATS[args.format])
    session.generate([(args.prompt, min(24, args.output_tokens))] * args.requests)
    figures = session.generate([(args.prompt, args.output_tokens)] * args.requests)
    key = (args.model, args.format, args.requests, args.prompt, args.output_tokens)
    stage.emit(
        {
            "model": args.model,
            "format": args.format,
            "layers": args.layers,
            "requests": args.requests,
            "prompt": args.prompt,
            "output": args.output_tokens,
            "seconds": round(figures.seconds, 3),
            "output_tokens_per_s": round(figures.tokens_per_s, 1),
            "published_s": _SECONDS.get(key) if args.layers is None else None,
        }
    )


if __name__ == "__main__":
    main()
