"""What adapters cost: tokens a second of streams that all have one, against the base alone, in turns. Rows of JSON.

python -m benchmarks.bench_adapters

The engine itself is measured, without HTTP, on random adapters of all linear layers: those that one server would serve.
Runs of both kinds alternate, and a row tells the median of the ratios of neighbouring runs: what else the machine does
meanwhile meets both. The base runs in an engine that has room for no adapters.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import torch
from safetensors.torch import save_file

from app.checkpoints.loader import iter_weights
from app.contract.config import AdapterSource, EngineConfig
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.runner.parallel import start_runner
from app.store import SilentProgress, Store, pull
from benchmarks.rows import RESULTS, context, report

_PROMPT_TOKENS = 32
_ENDINGS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapters(directory: Path, weights: tuple[Path, ...], count: int, rank: int) -> tuple[AdapterSource, ...]:
    """Random adapters of a checkpoint's linear layers."""
    endings = tuple(f"{end}.weight" for end in _ENDINGS)
    shapes = {stored.name: stored.shape for stored in iter_weights(weights) if stored.name.endswith(endings)}
    sources = []
    for index in range(count):
        torch.manual_seed(index)
        place = directory / f"adapter-{index}"
        place.mkdir()
        tensors = {}
        for name, (n, k) in shapes.items():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, k, dtype=torch.bfloat16) / k**0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(n, rank, dtype=torch.bfloat16) / 50
        save_file(tensors, place / "adapter_model.safetensors")
        fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
        (place / "adapter_config.json").write_text(json.dumps(fields))
        sources.append(AdapterSource(place.name, str(place)))
    return tuple(sources)


def rate(engine: EngineCore, streams: int, max_tokens: int, adapters: tuple[AdapterSource, ...]) -> float:
    """Tokens a second of streams that are asked at once, each with an adapter in turn, or none."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    started = time.perf_counter()
    for stream in range(streams):
        prompt = [(stream * 37 + place * 11) % 1000 + 100 for place in range(_PROMPT_TOKENS)]
        name = adapters[stream % len(adapters)].name if adapters else ""
        engine.add_request(
            GenerateRequest(request_id=str(stream), prompt_token_ids=prompt, sampling=sampling, seed=0, adapter=name)
        )
    while engine.has_work:
        engine.step()
    return streams * max_tokens / (time.perf_counter() - started)


def compare(
    base: EngineCore, adapted: EngineCore, streams: int, max_tokens: int, runs: int, sources: tuple[AdapterSource, ...]
) -> dict[str, Any]:
    """Tokens a second of both engines."""
    rates: dict[str, list[float]] = {"base": [], "adapted": []}
    for run in range(runs + 1):
        pair = rate(base, streams, max_tokens, ()), rate(adapted, streams, max_tokens, sources)
        if run:  # the first pair warms up
            for kind, value in zip(rates, pair, strict=True):
                rates[kind].append(value)
    ratios = [adapted / base for base, adapted in zip(*rates.values(), strict=True)]
    return {
        "streams": streams,
        "base_tok_s": round(statistics.median(rates["base"]), 1),
        "adapted_tok_s": round(statistics.median(rates["adapted"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
    }


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--adapters", "count", default=16, show_default=True)
@click.option("--rank", default=16, show_default=True)
@click.option("--streams", "counts", multiple=True, type=int, default=(1, 32), show_default=True)
@click.option("--max-tokens", default=64, show_default=True, help="Tokens of a stream.")
@click.option("--runs", default=5, show_default=True, help="Pairs of runs that count.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "adapters.jsonl", show_default=True)
def main(model: str, count: int, rank: int, counts: tuple[int, ...], max_tokens: int, runs: int, output: Path) -> None:
    """Measures and writes a row for each number of streams."""
    head = context("adapters")
    store = Store()
    files = pull(model, store, SilentProgress())
    config = EngineConfig(
        model_dir=str(files.directory),
        weights=tuple(str(path) for path in files.weights),
        packed_cache=str(store.packed),
        dtype="auto",
        quantization="auto",
        max_model_len=1024,
        enable_prefix_caching=False,
    )
    with tempfile.TemporaryDirectory() as directory:
        sources = write_adapters(Path(directory), tuple(files.weights), count, rank)
        with_adapters = msgspec.structs.replace(config, adapters=sources, max_adapters=count)
        engines = [EngineCore(start_runner(each, lambda _: None), each) for each in (config, with_adapters)]
        for streams in counts:
            row = compare(engines[0], engines[1], streams, max_tokens, runs, sources)
            report({**head, "model": model, "adapters": count, "rank": rank, **row}, output)


if __name__ == "__main__":
    main()
