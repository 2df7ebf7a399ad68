"""What drafts gain: tokens a second with and without them, in turns, on text that repeats its prompt and on text that
does not. Rows of JSON.

python -m benchmarks.bench_drafts

The engine itself is measured, without HTTP. Answers with drafts have to be those without, token by token: a row that
says otherwise ends the program. Runs of both engines alternate, and a row tells the median of the ratios of
neighbouring runs: what else the machine does meanwhile meets both. Tokens a step do not hang on the machine at all.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from app.contract.config import EngineConfig
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.runner.parallel import start_runner
from app.store import SilentProgress, Store, pull
from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from benchmarks.rows import RESULTS, context, report

_FILE = """def add(a, b):
    return a + b


def total(values):
    result = 0
    for value in values:
        result = add(result, value)
    return result


def mean(values):
    if not values:
        raise ValueError("no values")
    return total(values) / len(values)


def variance(values):
    average = mean(values)
    return total([(value - average) ** 2 for value in values]) / len(values)
"""
_REPORT = """The harbour received forty ships in March, nine more than in the year before. Most of them carried grain
from the north; six carried timber. Two ships were turned away because their papers were not in order. The new crane
was out of use for eleven days, and the harbour master expects the repair to be finished by the end of April."""
_SUBJECTS = ("the sky", "bread", "a compiler", "the sea", "a violin", "winter", "a railway", "the moon")
_QUESTIONS = {
    "edit": [f"Rename the function total to {name}. Print the whole file.\n\n```python\n{_FILE}```"
             for name in ("summed", "accumulate", "sum_all", "gather", "fold", "plus", "whole", "sum_of")],
    "copy": [f"Repeat this report word by word for {who}:\n\n{_REPORT}"
             for who in ("a friend", "the mayor", "a child", "the crew", "a clerk", "the press", "me", "us")],
    "free": [f"Tell me something about {subject}." for subject in _SUBJECTS],
}  # fmt: skip


class Run(NamedTuple):
    """One run of all streams."""

    rate: float
    """Tokens a second."""
    per_step: float
    """Tokens that a step gave, of all its rows."""
    token_ids: list[list[int]]


def run(engine: EngineCore, prompts: list[list[int]], sampling: SamplingParams) -> Run:
    """Asks all prompts at once."""
    token_ids: list[list[int]] = [[] for _ in prompts]
    started, steps = time.perf_counter(), engine.num_steps
    for stream, prompt in enumerate(prompts):
        request = GenerateRequest(request_id=str(stream), prompt_token_ids=prompt, sampling=sampling, seed=stream)
        engine.add_request(request)
    while engine.has_work:
        for output in engine.step():
            token_ids[int(output.request_id)] += output.new_token_ids
    count = sum(map(len, token_ids))
    return Run(count / (time.perf_counter() - started), count / (engine.num_steps - steps), token_ids)


def compare(
    plain: EngineCore, drafting: EngineCore, prompts: list[list[int]], sampling: SamplingParams, runs: int
) -> dict[str, Any]:
    """Both engines on the same prompts."""
    pairs = []
    before = drafting.stats()
    for turn in range(runs + 1):
        pair = run(plain, prompts, sampling), run(drafting, prompts, sampling)
        if pair[0].token_ids != pair[1].token_ids:
            raise click.ClickException("drafts have changed a text")
        if turn:  # the first pair warms up, and shows the engine what steps cost
            pairs.append(pair)
    after = drafting.stats()
    tried = after.draft_tokens_total - before.draft_tokens_total
    ratios = [drafts.rate / none.rate for none, drafts in pairs]
    return {
        "none_tokens_per_second": round(statistics.median(none.rate for none, _ in pairs), 1),
        "drafts_tokens_per_second": round(statistics.median(drafts.rate for _, drafts in pairs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "none_tokens_per_step": round(pairs[-1][0].per_step, 2),
        "drafts_tokens_per_step": round(pairs[-1][1].per_step, 2),
        "accepted": round((after.accepted_draft_tokens_total - before.accepted_draft_tokens_total) / max(1, tried), 2),
    }


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--draft", default="lookup", show_default=True, type=click.Choice(["lookup", "history"]))
@click.option("--max-draft-tokens", default=8, show_default=True)
@click.option("--draft-ngram", default=3, show_default=True)
@click.option("--streams", default=(1, 4), show_default=True, multiple=True, help="Answers at once; may repeat.")
@click.option("--temperature", default=(0.0, 0.6), show_default=True, multiple=True, help="May repeat.")
@click.option("--kind", default=tuple(_QUESTIONS), show_default=True, multiple=True, help="May repeat.")
@click.option("--max-tokens", default=160, show_default=True)
@click.option("--runs", default=3, show_default=True)
@click.option("--threads", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "drafts.jsonl", show_default=True)
def main(
    model: str,
    streams: tuple[int, ...],
    temperature: tuple[float, ...],
    kind: tuple[str, ...],
    max_tokens: int,
    runs: int,
    output: Path,
    **engine: Any,
) -> None:
    """Compares an engine with drafts with one without."""
    head = context("drafts")
    store = Store()
    files = pull(model, store, SilentProgress())
    tokenizer, template = Tokenizer.load(files.tokenizer_file), ChatTemplate(files.chat_template)
    prompts = {
        name: [template.encode([{"role": "user", "content": text}], tokenizer) for text in _QUESTIONS[name]]
        for name in kind
    }

    def start(draft: str) -> EngineCore:
        config = EngineConfig(
            model_dir=str(files.directory),
            weights=tuple(str(path) for path in files.weights),
            eos_token_ids=files.eos_token_ids,
            packed_cache=str(store.packed),
            enable_prefix_caching=False,
            **{**engine, "quantization": "auto", "draft": draft},
        )
        return EngineCore(start_runner(config, lambda _: None), config)

    plain, drafting = start("none"), start(engine["draft"])
    for name, asked in prompts.items():
        for heat in temperature:
            for count in streams:
                sampling = SamplingParams(temperature=heat, max_tokens=max_tokens)
                row = compare(plain, drafting, asked[:count], sampling, runs)
                shape = {"kind": name, "streams": count, "temperature": heat, "max_tokens": max_tokens}
                report({**head, "model": model, **engine, **shape, **row}, output)


if __name__ == "__main__":
    main()
