"""The headline: 256 requests of 1,024 tokens in and 1,024 out at once, on the shape of Qwen3-8B, in process."""

from __future__ import annotations

import argparse

from benchmarks.gpu.engine import FORMATS
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.session import Session
from benchmarks.gpu.stage import Stage

_SECONDS = {("qwen3-8b", "bf16", 256, 1024, 1024): 30.85}
"""What SGLang takes on one H200, by its published figures."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="qwen3-8b")
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, help="fewer layers, to try the stage")


def main() -> None:
    """Runs it once, after a short warm-up."""
    stage = Stage("headline", __doc__, _options)
    args = stage.args
    length = args.prompt + args.output_tokens
    session = Session(
        args.model,
        num_tokens=args.requests * (length + 16),
        num_layers=args.layers,
        device=args.device,
        max_num_seqs=args.requests,
        max_num_batched_tokens=8192,
        max_logit_rows=args.requests,
        max_model_len=length,
        **FORMATS[args.format],
    )
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
