"""transformers on the same device, shape and workload: continuous batching, and plain ``generate``; ours before it."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import MODELS, write_config
from benchmarks.gpu.session import workload_options, workload_session
from benchmarks.gpu.stage import Stage


def _options(parser: argparse.ArgumentParser) -> None:
    workload_options(parser, requests=64, output_tokens=128)


def main() -> None:
    """Runs ours, then transformers, each warmed up."""
    stage = Stage("transformers", __doc__, _options)
    args = stage.args
    workload = {"model": args.model, "requests": args.requests, "prompt": args.prompt, "output": args.output_tokens}

    def emit(system: str, run: Callable[[int], int], **more: Any) -> None:
        run(4)
        started = time.perf_counter()
        tokens = run(args.output_tokens)
        seconds = time.perf_counter() - started
        figures = {"seconds": round(seconds, 3), "output_tokens_per_s": round(tokens / seconds, 1)}
        stage.emit({**workload, "system": system, **figures, **more})

    emit("tuili", ours(args))
    if stage.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        import transformers
    except ImportError:
        stage.emit({**workload, "skipped": "transformers is not installed"})
        return
    version = {"peer_version": transformers.__version__}
    model = _transformers_model(args)
    prompts = torch.randint(10, MODELS[args.model]["vocab_size"], (args.requests, args.prompt))
    peers = {
        "transformers continuous batching": _continuous(model, prompts),
        "transformers generate": _static(model, prompts.to(args.device)),
    }
    for system, run in peers.items():
        try:
            emit(system, run, **version)
        except Exception as e:  # noqa: BLE001 whatever the peer raises costs its own row alone
            stage.emit({**workload, "system": system, "raised": f"{type(e).__name__}: {e}"[:500], **version})


def ours(args: argparse.Namespace) -> Callable[[int], int]:
    """Our engine under the workload; called with the tokens to generate, it returns how many it did."""
    session = workload_session(args, dtype="bfloat16")
    return lambda output: session.generate([(args.prompt, output)] * args.requests).tokens


def _transformers_model(args: argparse.Namespace) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        config = AutoConfig.from_pretrained(write_config(args.model, Path(directory), args.layers))
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval()
    model.generation_config.eos_token_id = None
    return model


def _continuous(model: Any, prompts: torch.Tensor) -> Callable[[int], int]:
    from transformers import GenerationConfig

    def run(output: int) -> int:
        config = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        answers = model.generate_batch(inputs=prompts.tolist(), generation_config=config)
        return sum(len(answer.generated_tokens) for answer in answers.values())

    return run


def _static(model: Any, prompts: torch.Tensor) -> Callable[[int], int]:
    def run(output: int) -> int:
        with torch.inference_mode():
            tokens = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=output,
                min_new_tokens=output,
                do_sample=False,
                pad_token_id=0,
            )
        return int((tokens.shape[1] - prompts.shape[1]) * tokens.shape[0])

    return run


if __name__ == "__main__":
    main()
