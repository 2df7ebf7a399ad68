"""An engine in this process on random weights, and the workloads it is timed under."""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.contract.config import EngineConfig
from app.contract.frames import EngineOutput, LoadProgress, StepRecord
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.runner.model_runner import ModelRunner
from app.runner.start import make_runner
from benchmarks.gpu.models import MODELS, write_config

MAX_STEP_TOKENS = 8192
_BLOCK = 16
_SPARE = 8
"""Steps before and after the measured ones, in which not every row takes part."""


class Figures(msgspec.Struct, frozen=True):
    """What a workload took."""

    seconds: float
    tokens: int
    """Tokens generated, or tokens of the prompt where nothing else was asked for."""
    records: list[StepRecord] = []

    @property
    def tokens_per_s(self) -> float:
        """Throughput in tokens a second."""
        return self.tokens / self.seconds


class Session:
    """A model with random weights (standard deviation 0.02), ready for requests.

    Args:
        num_tokens: tokens that the KV cache has to hold.
        options: fields of :class:`EngineConfig`.
    """

    def __init__(self, model: str, *, num_tokens: int, num_layers: int | None = None, **options: Any) -> None:
        with tempfile.TemporaryDirectory() as directory:
            write_config(model, Path(directory), num_layers)
            values: dict[str, Any] = {
                "load_format": "dummy",
                "num_blocks": -(-num_tokens // _BLOCK) + 1,
                "block_size": _BLOCK,
                "enable_prefix_caching": False,
                **options,
            }
            self.config = EngineConfig(model_dir=directory, **values)
            self.runner: ModelRunner = make_runner(self.config, _ignore)
        self._engine = EngineCore(self.runner, self.config)
        gc.collect()
        gc.freeze()  # as an engine's process does
        self._vocab_size = int(MODELS[model]["vocab_size"])
        self._rng = np.random.default_rng(0)
        self._count = 0

    def prefill(self, length: int) -> Figures:
        """The time from one prompt's arrival to its first token."""
        self._add(length, 1)
        started = time.perf_counter()
        self._drain()
        return Figures(time.perf_counter() - started, length)

    def decode(
        self,
        batch: int,
        context: int,
        steps: int,
        around: contextlib.AbstractContextManager[object] | None = None,
    ) -> Figures:
        """Steady decoding of ``batch`` sequences whose prompts have ``context`` tokens.

        Args:
            around: context manager that is entered for the measured steps alone.
        """
        output = decode_output(batch, context, steps, self.config.max_num_batched_tokens)
        names = [self._add(context, output) for _ in range(batch)]
        generated = dict.fromkeys(names, 0)
        while min(generated.values()) < _SPARE:
            _count(self._engine.step(), generated)
        self._engine.take_records()
        before = sum(generated.values())
        with around or contextlib.nullcontext():
            started = time.perf_counter()
            for _ in range(steps):
                _count(self._engine.step(), generated)
            seconds = time.perf_counter() - started
        records = self._engine.take_records()
        self._engine.abort(names)
        self._drain()
        return Figures(seconds, sum(generated.values()) - before, records)

    def generate(self, requests: Sequence[tuple[int, int]]) -> Figures:
        """All requests (prompt length, output length) at once, until the last one is done."""
        for prompt, output in requests:
            self._add(prompt, output)
        started = time.perf_counter()
        self._drain()
        return Figures(time.perf_counter() - started, sum(output for _, output in requests))

    def _add(self, prompt: int, output: int) -> str:
        self._count += 1
        name = f"request-{self._count}"
        sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        ids = self._rng.integers(10, self._vocab_size, prompt).tolist()
        now = time.monotonic()
        self._engine.add_request(
            GenerateRequest(request_id=name, prompt_token_ids=ids, sampling=sampling, seed=0, arrival_time=now)
        )
        return name

    def _drain(self) -> None:
        while self._engine.has_work:
            for output in self._engine.step():
                if output.error is not None:
                    raise RuntimeError(f"{output.request_id}: {output.error.message}")


def decode_output(batch: int, context: int, steps: int, max_num_batched_tokens: int) -> int:
    """Tokens that a row of :meth:`Session.decode` may generate: the first do while others' prompts are computed."""
    return steps + 2 * _SPARE + -(-batch * context // max_num_batched_tokens)


def workload_options(parser: argparse.ArgumentParser, *, requests: int, output_tokens: int) -> None:
    """Options of a stage in which one model answers requests of one size, all at once."""
    parser.add_argument("--model", choices=MODELS, default="qwen3-8b")
    parser.add_argument("--requests", type=int, default=requests)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=output_tokens)
    parser.add_argument("--layers", type=int, help="fewer layers, to try the stage")


def workload_session(args: argparse.Namespace, **formats: Any) -> Session:
    """A session with room for such a workload."""
    length = args.prompt + args.output_tokens
    return Session(
        args.model,
        num_tokens=args.requests * (length + _BLOCK),
        num_layers=args.layers,
        device=args.device,
        max_num_seqs=args.requests,
        max_num_batched_tokens=MAX_STEP_TOKENS,
        max_logit_rows=args.requests,
        max_model_len=length,
        **formats,
    )


def _count(outputs: list[EngineOutput], generated: dict[str, int]) -> None:
    for output in outputs:
        if output.error is not None:
            raise RuntimeError(f"{output.request_id}: {output.error.message}")
        generated[output.request_id] += len(output.new_token_ids)


def _ignore(progress: LoadProgress) -> None:
    """Ignores progress."""
