"""Drives a real runner by hand, one or more sequences at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress, TokenLogprobs
from app.contract.request import SamplingParams
from app.contract.step import RowOutput, ScheduledRow, SlotInit, StepPlan, StepResult, TokenMasks
from app.engine.runner import Runner
from app.runner.model_runner import ModelRunner
from app.runner.start import make_runner
from tests.runner.steps import GREEDY, row_of, slot_of, step_of


def discard(progress: LoadProgress) -> None:
    """For runners whose loading nobody watches."""


def engine_config(directory: Path, **overrides: Any) -> EngineConfig:
    """A small engine on the checkpoint in ``directory``."""
    values: dict[str, Any] = {
        "model_dir": str(directory),
        "weights": tuple(str(file) for file in sorted(directory.glob("*.safetensors"))),
        "num_blocks": 64,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 128,
        "max_logit_rows": 128,
        **overrides,
    }
    return EngineConfig(**values)


def runner_of(directory: Path, **overrides: Any) -> ModelRunner:
    """A runner that is ready for steps."""
    return make_runner(engine_config(directory, **overrides), discard)


@dataclass
class Request:
    """A request as a scheduler sees it, its blocks given beforehand: the same in every KV cache group."""

    slot: int
    prompt: list[int]
    blocks: list[int]
    params: SamplingParams = GREEDY
    seed: int = 0
    block_size: int = 16
    adapter: int = -1
    outputs: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None
    num_computed: int = 0
    num_blocks: int = 0
    bound: bool = False

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.outputs

    def bind(self) -> list[SlotInit]:
        """The slot's binding, when it is due."""
        if self.bound:
            return []
        self.bound = True
        return [
            slot_of(self.slot, self.prompt, self.params, seed=self.seed, outputs=self.outputs, adapter=self.adapter)
        ]

    def preempt(self, slot: int, blocks: Sequence[int]) -> None:
        """Goes on from nothing in another slot and in other blocks."""
        self.slot, self.blocks = slot, list(blocks)
        self.num_computed = self.num_blocks = 0
        self.bound = False

    def next_row(self, max_tokens: int, *, from_device: bool = False, num_groups: int = 1) -> ScheduledRow:
        """The next tokens to compute, all that is left or ``max_tokens``; sampled when it is all."""
        start = self.num_computed
        end = min(len(self.tokens), start + max_tokens)
        needed = -(-end // self.block_size)
        blocks = self.blocks[self.num_blocks : needed]
        targets: list[int] = []
        if self.params.prompt_logprobs is not None:
            targets = self.prompt[start + 1 : end + 1]
        self.num_computed, self.num_blocks = end, needed
        token_ids = None if from_device else self.tokens[start:end]
        return row_of(
            self.slot,
            start,
            token_ids,
            groups=[blocks] * num_groups,
            targets=targets,
            num_samples=int(end == len(self.tokens)),
        )

    def take(self, output: RowOutput) -> None:
        """Books what a step gave."""
        self.outputs += output.token_ids
        self.logprobs += output.logprobs or []
        self.prompt_logprobs += output.prompt_logprobs or []
        self.error = output.error


def run(
    runner: Runner,
    sequences: Sequence[Request],
    num_tokens: int,
    *,
    chunk: int = 128,
    device: bool = True,
    masks: Callable[[StepPlan], TokenMasks | None] = lambda _: None,
) -> None:
    """Steps all sequences together until each has ``num_tokens`` outputs or failed; prefills in chunks.

    Args:
        device: decode from the token that the slot sampled last instead of passing it in.
        masks: masks of a step's samples.
    """
    num_groups = len(runner.info.kv_cache.groups)
    while True:
        active = [s for s in sequences if len(s.outputs) < num_tokens and s.error is None]
        if not active:
            return
        slots = [init for s in active for init in s.bind()]
        rows = [
            s.next_row(chunk, from_device=device and s.num_computed >= len(s.prompt), num_groups=num_groups)
            for s in active
        ]
        step = step_of(rows, slots)
        result = runner.collect(runner.submit(step, masks(step)))
        assert isinstance(result, StepResult)
        for sequence, output in zip(active, result.rows, strict=True):
            sequence.take(output)
