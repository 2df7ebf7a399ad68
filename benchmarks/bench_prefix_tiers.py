"""What a long conversation waits for after a restart: its first token with the prefix cache on disk, and without.

python -m benchmarks.bench_prefix_tiers

A server answers the first turn and is stopped. Then servers are started in turns, without the cache and with it, and
each is asked the second turn once, behind a short request that warms it up: clients' seconds to the first token, over
HTTP. Rows of JSON.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.rows import RESULTS, context, report
from benchmarks.served import served

_LOWEST_ID, _HIGHEST_ID = 100, 40_000
"""Ids of plain tokens, of any model with a usual vocabulary."""
_REST_SECONDS = 2.0
"""Seconds without a new file after which there is none to come."""
_SECOND_TURN = 40
"""Tokens that the second turn adds to the first one and its answer."""


@dataclass(frozen=True)
class Answer:
    """One answer as a client sees it."""

    first_token: float
    """Seconds to the first token."""
    text: str
    cached_tokens: int


def ask(url: str, model: str, prompt: list[int], max_tokens: int) -> Answer:
    """Asks for a greedy answer, as a stream."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, text, cached = time.perf_counter(), 0.0, "", 0
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["choices"]:
                first = first or time.perf_counter() - began
                text += event["choices"][0]["text"]
            if event.get("usage"):
                cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
    return Answer(first, text, cached)


def asked_once(model: str, prompt: list[int], max_tokens: int, *arguments: str) -> Answer:
    """The answer of a server that has just been started; it is stopped once it writes no files any more."""
    with served("--model", model, *arguments) as server:
        ask(server.url, model, prompt[:1] * 20, 4)
        answer = ask(server.url, model, prompt, max_tokens)
        before = -1.0
        while (written := files_written(server.url)) != before:
            before = written
            time.sleep(_REST_SECONDS)
        return answer


def files_written(url: str) -> float:
    """Files that the tier on disk has taken."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "tuili_prefix_tier_stores_total")


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--tokens", default=6000, show_default=True, help="Tokens of the first turn.")
@click.option("--max-tokens", default=32, show_default=True, help="Tokens of each answer.")
@click.option("--runs", default=3, show_default=True, help="Pairs of servers.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "prefix_tiers.jsonl", show_default=True)
def main(model: str, tokens: int, max_tokens: int, runs: int, seed: int, output: Path) -> None:
    """Measures and writes a row."""
    head = context("prefix_tiers")
    chosen = random.Random(seed)
    said = [chosen.randrange(_LOWEST_ID, _HIGHEST_ID) for _ in range(tokens + _SECOND_TURN)]
    with tempfile.TemporaryDirectory() as directory:
        kept = ("--prefix-cache-dir", f"{directory}/blocks")
        first = asked_once(model, said[:tokens], max_tokens, *kept)
        files = [file.stat().st_size for file in Path(directory).rglob("*.kv")]
        pairs = [(asked_once(model, said, max_tokens), asked_once(model, said, max_tokens, *kept)) for _ in range(runs)]
    cold, restored = (statistics.median(each.first_token for each in kind) for kind in zip(*pairs, strict=True))
    row = {
        "model": model,
        "tokens": len(said),
        "cached_tokens": min(after.cached_tokens for _, after in pairs),
        "first_turn_s": round(first.first_token, 3),
        "cold_s": round(cold, 3),
        "restored_s": round(restored, 3),
        "ratio": round(restored / cold, 3),
        "ratios": [round(after.first_token / before.first_token, 3) for before, after in pairs],
        "same_text": all(before.text == after.text for before, after in pairs),
        "files": len(files),
        "bytes_per_token": round(sum(files) / tokens),
    }
    report({**head, **row}, output)


if __name__ == "__main__":
    main()
