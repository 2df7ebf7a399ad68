"""The four workloads, each one function from a target to its figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from app.bench.load import LoadRun
from app.bench.summary import summarise
from benchmarks.peers.prompts import RoundPrompts, Sizes
from benchmarks.peers.targets import Target

Figures = dict[str, Any]
Workload = Callable[[Target, RoundPrompts, Sizes], Figures]


def warm_up(target: Target, prompts: RoundPrompts, sizes: Sizes) -> None:
    """Lets caches and thread pools settle, one request alone and then as many as there will be; not measured."""
    target.ask(prompts.warmup[:1], min(16, sizes.output), 1)
    target.ask(prompts.warmup[1:], min(8, sizes.output), sizes.concurrency)


def one_stream(target: Target, prompts: RoundPrompts, sizes: Sizes) -> Figures:
    """W1: one request after the other. Decode speed counts from the first token on."""
    run = target.ask(prompts.single, sizes.output, 1)
    figures = _common(run, sizes.prompt, sizes.output)
    tpot = statistics.fmean(result.tpot for result in run.results if result.tpot is not None)
    return figures | {"decode_tok_s": 1 / tpot}


def many_streams(target: Target, prompts: RoundPrompts, sizes: Sizes) -> Figures:
    """W2: 16 requests under way at once, three times over."""
    run = target.ask(prompts.many, sizes.output, sizes.concurrency)
    figures = _common(run, sizes.prompt, sizes.output)
    latencies = summarise(run, {})
    kept = ("p90_ttft_ms", "mean_itl_ms", "p50_itl_ms", "p99_itl_ms")
    return figures | {"output_tok_s": run.num_output_tokens / run.elapsed} | {name: latencies[name] for name in kept}


def long_prompt(target: Target, prompts: RoundPrompts, sizes: Sizes) -> Figures:
    """W3: a long prompt, one token back."""
    run = target.ask([prompts.long], 1, 1)
    figures = _common(run, sizes.long, 1)
    return figures | {"prompt_tok_s": sizes.long / (figures["ttft_ms"] / 1e3)}


def shared_prefix(target: Target, prompts: RoundPrompts, sizes: Sizes) -> Figures:
    """W4: requests that arrive together and begin alike, as under one system prompt."""
    run = target.ask(prompts.shared, sizes.shared_output, sizes.shared, prefix=sizes.prefix)
    return _common(run, sizes.prefix + sizes.suffix, sizes.shared_output) | {"wall_s": run.elapsed}


WORKLOADS: dict[str, Workload] = {
    "W1": one_stream,
    "W2": many_streams,
    "W3": long_prompt,
    "W4": shared_prefix,
}


def _common(run: LoadRun, prompt_tokens: int, output_tokens: int) -> Figures:
    results = run.results
    return {
        "requests": len(results),
        "duration_s": run.elapsed,
        # A single token may be half of a character: then there is no text, and the end is what can be seen.
        "ttft_ms": 1e3 * statistics.fmean(result.e2el if result.ttft is None else result.ttft for result in results),
        "output_tokens": run.num_output_tokens,
        "cached_tokens": sum(result.cached_tokens for result in results),
        "notes": [*_notes(results, prompt_tokens, output_tokens)],
    }


def _notes(results: Sequence[Any], prompt_tokens: int, output_tokens: int) -> list[str]:
    """Whatever keeps these figures from being compared without a thought."""
    notes = []
    if any(not result.has_usage for result in results):
        notes.append("no usage: chunks were counted as tokens")
    if prompts := sorted({r.input_tokens for r in results if r.has_usage and r.input_tokens != prompt_tokens}):
        notes.append(f"prompts of {prompts} tokens instead of {prompt_tokens}")
    if outputs := sorted({r.output_tokens for r in results if r.output_tokens != output_tokens}):
        notes.append(f"answers of {outputs} tokens instead of {output_tokens}")
    return notes
