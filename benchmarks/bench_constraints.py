"""What a grammar costs, and what forced tokens give: tokens a second with and without one, in turns. Rows of JSON.

python -m benchmarks.bench_constraints

Each measurement runs the engine itself, without HTTP. A constrained run follows a grammar that lets (nearly) all text
through, so that it has the steps of a free one and a mask in each. Runs of both kinds alternate, and a row tells the
median of the ratios of neighbouring runs: what else the machine does meanwhile meets both.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from app import LLM, SamplingParams
from app.serving.generation import Completion
from benchmarks.rows import RESULTS, context, report

_PROMPT = "<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n"
_NO_CODE = "start: /[^`]*/"
"""Any text without a backtick: the mask is neither empty nor full."""
_NAMES = ("first_name", "last_name", "street_address", "postal_code", "city_of_residence", "country_of_birth")
_FORM = {
    "type": "object",
    "properties": {name: {"enum": ["known", "unknown"]} for name in _NAMES},
    "required": list(_NAMES),
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
"""Most of an answer is spelled by the schema."""


def grammar(text: str) -> str:
    """A Lark text as a request carries it."""
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def prompts(streams: int) -> list[str]:
    """A prompt for each stream, all different."""
    return [f"{_PROMPT}{index}. " for index in range(streams)]


def timed(llm: LLM, streams: int, max_tokens: int, constraint: str, *, until: bool = False) -> tuple[float, int]:
    """Seconds and tokens of a batch of streams.

    Args:
        until: end where the grammar ends, not after ``max_tokens``.
    """
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=max_tokens, ignore_eos=True, min_tokens=max_tokens)
    if until:
        params = SamplingParams(temperature=1.0, seed=1, max_tokens=max_tokens)
    started = time.perf_counter()
    completions: Sequence[Completion] = llm.generate(prompts(streams), params, constraint=constraint)
    return time.perf_counter() - started, sum(len(completion.token_ids) for completion in completions)


def compare_masks(llm: LLM, streams: int, max_tokens: int, runs: int) -> dict[str, Any]:
    """Tokens a second of constrained streams against those of free ones."""
    rates: dict[str, list[float]] = {"free": [], "constrained": []}
    sources = {"free": "", "constrained": grammar(_NO_CODE)}
    for run in range(runs + 1):
        for kind, source in sources.items():
            seconds, tokens = timed(llm, streams, max_tokens, source)
            if run:  # the first of each warms up
                rates[kind].append(tokens / seconds)
    ratios = [bound / free for bound, free in zip(rates["constrained"], rates["free"], strict=True)]
    return {
        "what": "masks",
        "streams": streams,
        "free_tok_s": round(statistics.median(rates["free"]), 1),
        "constrained_tok_s": round(statistics.median(rates["constrained"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
    }


def compare_forced(llm: LLM, streams: int, runs: int) -> dict[str, Any]:
    """Tokens a second of a schema of many literals against those of free text of the same length."""
    source = grammar(f"start: %json {json.dumps(_FORM)}")
    rates: dict[str, list[float]] = {"free": [], "schema": []}
    length = 0
    for run in range(runs + 1):
        seconds, tokens = timed(llm, streams, 400, source, until=True)
        length = tokens // streams
        free_seconds, free_tokens = timed(llm, streams, length, "")
        if run:
            rates["schema"].append(tokens / seconds)
            rates["free"].append(free_tokens / free_seconds)
    ratios = [bound / free for bound, free in zip(rates["schema"], rates["free"], strict=True)]
    return {
        "what": "forced tokens",
        "streams": streams,
        "tokens": length,
        "free_tok_s": round(statistics.median(rates["free"]), 1),
        "schema_tok_s": round(statistics.median(rates["schema"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
    }


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--streams", "counts", multiple=True, type=int, default=(1, 16), show_default=True)
@click.option("--max-tokens", default=128, show_default=True, help="Tokens of a stream.")
@click.option("--runs", default=7, show_default=True, help="Pairs of runs that count.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "constraints.jsonl", show_default=True)
def main(model: str, counts: tuple[int, ...], max_tokens: int, runs: int, output: Path) -> None:
    """Measures and writes a row for each number of streams and comparison."""
    head = context("constraints")
    # No prompt is read twice from the cache by one side alone: both sides have the same ones.
    with LLM(model, max_num_seqs=max(counts), max_model_len=2048) as llm:
        for streams in counts:
            report({**head, "model": model, **compare_masks(llm, streams, max_tokens, runs)}, output)
            report({**head, "model": model, **compare_forced(llm, streams, runs)}, output)


if __name__ == "__main__":
    main()
