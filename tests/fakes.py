"""A runner without a model, for every test that needs an engine but no tensors.

:class:`FakeRunner` keeps real pages: each row's tokens are written into the blocks that its slot's table names, and the
"model" reads its whole context back from there. The next token is a function of all tokens before it, so any schedule
(batched, chunked, cached, preempted, run ahead, with drafts) must give the same text, and a block that is written or
shared wrongly shows. What the step contract forbids raises :class:`StepContractError`.
"""

from __future__ import annotations

import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.contract.config import EngineConfig
from app.contract.frames import EngineReady, LoadProgress, TokenLogprobs
from app.contract.info import KVCacheGroup, KVCacheSpec, RunnerInfo
from app.contract.request import GenerateRequest, SamplingParams
from app.contract.step import (
    EncodeBatch,
    EncodeResult,
    Plan,
    RowOutput,
    ScheduledRow,
    SlotInit,
    StepPlan,
    StepResult,
    TokenMasks,
)
from tests.fake_encoder import fake_encode
from tests.fake_pages import StepContractError, new_pages, require

VOCAB_SIZE = 1000
POISON = -1
"""What stands in the pages of a step that failed."""

NextToken = Callable[[Sequence[int]], int]
Draft = Callable[[Sequence[int]], list[int]]


def hash_token(context: Sequence[int], vocab_size: int = VOCAB_SIZE) -> int:
    """The default "model": a hash of all tokens so far."""
    return zlib.crc32(array("q", context).tobytes()) % vocab_size


def expected_tokens(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    stop_token_ids: Collection[int] = (),
    next_token: NextToken = hash_token,
) -> list[int]:
    """What :class:`FakeRunner` generates for ``prompt``, however it is scheduled; a stop token is included."""
    context = list(prompt)
    while len(context) < len(prompt) + max_tokens:
        context.append(next_token(context))
        if context[-1] in stop_token_ids:
            break
    return context[len(prompt) :]


def fake_config(**overrides: object) -> EngineConfig:
    """A small engine's configuration."""
    values: dict[str, object] = {"model_dir": "fake", "max_num_seqs": 8, "integrity_checks": True, **overrides}
    return EngineConfig(**values)  # type: ignore[arg-type]


def fake_request(
    request_id: str,
    prompt: Sequence[int],
    max_tokens: int = 8,
    *,
    priority: int = 0,
    deadline: float | None = None,
    client_index: int = 0,
    arrival_time: float = 0.0,
    cache_salt: str = "",
    adapter: str = "",
    prediction_token_ids: Sequence[int] = (),
    **sampling: object,
) -> GenerateRequest:
    """A greedy request."""
    values: dict[str, object] = {"temperature": 0.0, "max_tokens": max_tokens, **sampling}
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(**values),  # type: ignore[arg-type]
        seed=0,
        priority=priority,
        deadline=deadline,
        client_index=client_index,
        arrival_time=arrival_time,
        cache_salt=cache_salt,
        adapter=adapter,
        prediction_token_ids=list(prediction_token_ids),
    )


def kv_group(kind: str = "full", num_blocks: int = 64, *, window: int | None = None) -> KVCacheGroup:
    """A group of one layer; blocks of a sliding group or of states are as large as others."""
    return KVCacheGroup(
        kind=kind,
        layers=(0,),
        num_kv_heads=1,
        head_dim=1,
        dtype="int64",
        bytes_per_block=8,
        num_blocks=num_blocks,
        window=window,
    )


def fake_info(groups: Sequence[KVCacheGroup] | None = None, *, block_size: int = 16, **facts: object) -> RunnerInfo:
    """Facts about a model without weights."""
    groups = [kv_group()] if groups is None else list(groups)
    values: dict[str, object] = {
        "max_model_len": 512,
        "vocab_size": VOCAB_SIZE,
        "num_parameters": 0,
        "weight_bytes": 0,
        "kv_cache": KVCacheSpec(block_size=block_size, groups=groups),
        "kv_cache_bytes": sum(group.num_blocks * group.bytes_per_block for group in groups),
        "dtype": "float32",
        "device": "cpu",
        **facts,
    }
    return RunnerInfo(**values)  # type: ignore[arg-type]


def fake_ready(**facts: object) -> EngineReady:
    """What an engine with one full group says when it came up."""
    info = fake_info(**facts)  # type: ignore[arg-type]
    (group,) = info.kv_cache.groups
    return EngineReady(info=info, max_kv_tokens=group.num_blocks * info.kv_cache.block_size, pid=1)


def make_fake_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
    """A ``make_runner`` for :func:`app.engine.process.run_engine` and ``InprocConnection``."""
    progress(LoadProgress(phase="weights", done=1, total=1))
    return FakeRunner(
        num_blocks=config.num_blocks or 64, block_size=config.block_size, max_model_len=config.max_model_len or 512
    )


@dataclass
class _Slot:
    """A slot's request as the device sees it."""

    init: SlotInit
    tables: list[list[int]]
    num_computed: int = 0
    context: list[int] = field(default_factory=list)
    """Tokens at positions [0, num_computed), as first seen."""
    sampled: list[int] = field(default_factory=list)
    """Tokens of the last sampling row; they stand at positions from ``num_computed`` - len + 1."""
    void: bool = False
    """The last row sampled nothing, so a row that takes its token from the device means nothing."""
    dead: bool = False
    """A step of it failed: the slot must be bound anew."""


@dataclass
class _Handle:
    step: Plan
    result: StepResult | EncodeResult
    fails: bool


class FakeRunner:
    """Implements ``app.engine.runner.Runner``; its public attributes program it and may be changed at any time."""

    def __init__(
        self,
        *,
        num_blocks: int | tuple[int, ...] = 64,
        groups: Sequence[KVCacheGroup] | None = None,
        block_size: int = 16,
        vocab_size: int = VOCAB_SIZE,
        max_model_len: int = 512,
        max_encode_len: int = 0,
        next_token: NextToken = hash_token,
        draft: Draft | None = None,
        withhold: Callable[[StepPlan, ScheduledRow], bool] | None = None,
        row_error: Callable[[StepPlan, ScheduledRow], str | None] | None = None,
        fail_submit: Callable[[StepPlan], bool] | None = None,
        fail_collect: Callable[[StepPlan], bool] | None = None,
        fail_encode: Callable[[EncodeBatch], bool] | None = None,
        delay: float = 0.0,
    ) -> None:
        """
        Args:
            num_blocks: of the full group, or each of the full groups, that there are if no ``groups`` are given.
            next_token: the model.
            draft: guesses for the tokens that follow a context, offered after each sample.
            withhold: rows that sample nothing this time.
            row_error: rows that fail alone, with this message.
            fail_submit, fail_collect, fail_encode: steps that raise.
            delay: seconds that a step takes.
        """
        if groups is None:
            groups = [
                kv_group("full", count) for count in ([num_blocks] if isinstance(num_blocks, int) else num_blocks)
            ]
        groups = list(groups)
        self.info = fake_info(
            groups,
            block_size=block_size,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            max_encode_len=max_encode_len,
            verifies_drafts=True,
        )
        self.fail_encode = fail_encode
        self.next_token = next_token
        self.draft = draft
        self.withhold = withhold
        self.row_error = row_error
        self.fail_submit = fail_submit
        self.fail_collect = fail_collect
        self.delay = delay
        self.steps: list[StepPlan] = []
        self.batches: list[EncodeBatch] = []
        self.plans: list[Plan] = []
        """Steps and batches, in order."""
        self.num_computed_tokens = 0
        self.num_accepted_drafts = 0
        self.num_rejected_drafts = 0
        self.num_device_rows = 0
        self.max_in_flight = 0
        self._pages = [new_pages(group, block_size) for group in groups]
        self._slots: dict[int, _Slot] = {}
        self._in_flight: deque[_Handle] = deque()
        self._masks: dict[int, list[NDArray[np.uint32]]] = {}
        """Masks of the samples of the step that is computed, by slot."""

    # -- Runner -------------------------------------------------------------------------------------------------

    def submit(self, step: Plan, masks: TokenMasks | None = None) -> _Handle:
        self.plans.append(step)
        if isinstance(step, EncodeBatch):
            return self._encode(step)
        self._check_step(step)
        self.steps.append(step)
        self._masks = {}
        for slot, words in zip(masks.slots, masks.wait(), strict=True) if masks is not None else ():
            self._masks.setdefault(slot, []).append(words)
        for init in step.slots:
            self._slots[init.slot] = _Slot(init, [[] for _ in self._pages])
        if self.fail_submit is not None and self.fail_submit(step):
            self._kill(step)
            raise RuntimeError("fake: submit failed")
        fails = self.fail_collect is not None and self.fail_collect(step)
        tokens = self._write(step.rows, poison=fails)
        rows = [self._attend(step, row, ids, fails=fails) for row, ids in zip(step.rows, tokens, strict=True)]
        self.num_computed_tokens += step.num_tokens
        handle = _Handle(step, StepResult(rows=rows), fails)
        self._in_flight.append(handle)
        self.max_in_flight = max(self.max_in_flight, len(self._in_flight))
        return handle

    def _encode(self, batch: EncodeBatch) -> _Handle:
        self.batches.append(batch)
        fails = self.fail_encode is not None and self.fail_encode(batch)
        handle = _Handle(batch, fake_encode(batch), fails)
        self._in_flight.append(handle)
        self.max_in_flight = max(self.max_in_flight, len(self._in_flight))
        return handle

    def collect(self, handle: _Handle) -> StepResult | EncodeResult:
        if self._in_flight.popleft() is not handle:
            raise StepContractError("steps are collected out of order")
        if self.delay:
            time.sleep(self.delay)
        if handle.fails:
            if isinstance(handle.step, StepPlan):
                self._kill(handle.step)
            raise RuntimeError("fake: collect failed")
        return handle.result

    # -- the contract -------------------------------------------------------------------------------------------

    def _check_step(self, step: StepPlan) -> None:
        slots = [row.slot for row in step.rows]
        inits = [init.slot for init in step.slots]
        require(bool(step.rows), "a step without rows")
        require(not self.steps or step.step > self.steps[-1].step, "step ids do not grow")
        require(len(set(slots)) == len(slots), f"a slot has two rows: {slots}")
        require(set(inits) <= set(slots), "a slot is bound without a row")
        require(step.num_tokens == sum(row.num_tokens for row in step.rows), "num_tokens is not the rows' sum")
        logit_rows = sum(row.num_tokens - row.logits_start for row in step.rows)
        require(step.num_logit_rows == logit_rows, "num_logit_rows is not the rows' sum")
        for row in step.rows:
            require(row.num_tokens > 0 and row.start >= 0, f"empty row: {row}")
            require(0 <= row.logits_start <= row.num_tokens, f"logits outside the row: {row}")
            targets = row.num_tokens - row.logits_start - row.num_samples
            require(targets == len(row.logprob_targets), f"targets do not match the logits: {row}")
            require(len(row.new_block_ids) == len(self._pages), f"one list of blocks a group: {row}")

    def _write(self, rows: Sequence[ScheduledRow], *, poison: bool) -> list[list[int]]:
        """Appends the rows' blocks and writes their tokens; returns those."""
        block_size = self.info.kv_cache.block_size
        tokens = []
        for row in rows:
            slot = self._slots.get(row.slot)
            if slot is None or slot.dead:
                raise StepContractError(f"slot {row.slot} is not bound: {row}")
            for table, new_block_ids in zip(slot.tables, row.new_block_ids, strict=True):
                table += new_block_ids
                require(row.start + row.num_tokens <= len(table) * block_size, f"no block to write to: {row}")
            tokens.append(self._tokens(slot, row))
        for group, pages in enumerate(self._pages):
            tables = [self._slots[row.slot].tables[group] for row in rows]
            before = [pages.load(table, row.start) for table, row in zip(tables, rows, strict=True)]
            for table, row, ids, node in zip(tables, rows, tokens, before, strict=True):
                pages.write(table, row.start, [POISON] * row.num_tokens if poison else ids, node)
        return tokens

    def _tokens(self, slot: _Slot, row: ScheduledRow) -> list[int]:
        if slot.void and row.token_ids is None:
            return [POISON]
        first = row.new_block_ids[0] and not slot.context and not slot.num_computed
        if not first:
            require(row.start == slot.num_computed, f"starts at {row.start}, computed: {slot.num_computed}")
        if row.token_ids is not None:
            require(len(row.token_ids) == row.num_tokens, f"token ids do not match num_tokens: {row}")
            if slot.sampled and not slot.void:
                require(row.token_ids[0] == slot.sampled[-1], f"does not go on with the sampled token: {row}")
            return row.token_ids
        require(row.num_tokens == 1 and bool(slot.sampled), f"no token on the device: {row}")
        self.num_device_rows += 1
        return [slot.sampled[-1]]

    def _attend(self, step: StepPlan, row: ScheduledRow, tokens: list[int], *, fails: bool) -> RowOutput:
        """Reads the row's context back from the pages, as every layer does after the whole step has written."""
        slot = self._slots[row.slot]
        if slot.void and row.token_ids is None:
            return RowOutput(token_ids=[0])
        context = self._read(slot, row)
        if POISON in context and not fails and not any(handle.fails for handle in self._in_flight):
            raise StepContractError(f"reads what a failed step left behind: {row}")
        if POISON in context[: row.start]:
            for table, pages in zip(slot.tables, self._pages, strict=True):  # garbage in, garbage out
                pages.write(table, row.start, [POISON] * row.num_tokens, None)
        known = len(slot.context)
        if POISON not in context and POISON not in slot.context:
            require(context[: min(known, row.start)] == slot.context[: row.start], f"context changed: {row}")
            for target, token in zip(row.logprob_targets, context[row.start + row.logits_start + 1 :], strict=False):
                require(target == token, f"a target is not the token that follows: {row}")
        output = self._sample(step, row, slot, context)
        rejected = row.num_samples - len(output.token_ids)
        slot.num_computed = row.start + row.num_tokens - rejected
        slot.context = context[: slot.num_computed]
        slot.void = row.num_samples > 0 and not output.token_ids
        slot.sampled = output.token_ids
        return output

    def _read(self, slot: _Slot, row: ScheduledRow) -> list[int]:
        """The context as every group knows it."""
        end = row.start + row.num_tokens
        contexts = [pages.read(table, end) for table, pages in zip(slot.tables, self._pages, strict=True)]
        for context in contexts:
            if POISON in context:
                return context
        require(all(context == contexts[0] for context in contexts), f"groups differ in their context: {row}")
        return contexts[0]

    def _kill(self, step: StepPlan) -> None:
        for row in step.rows:
            self._slots[row.slot].dead = True

    # -- the model ----------------------------------------------------------------------------------------------

    def _sample(self, step: StepPlan, row: ScheduledRow, slot: _Slot, context: list[int]) -> RowOutput:
        error = self.row_error(step, row) if self.row_error is not None else None
        if error is not None:
            return RowOutput(error=error)
        params = slot.init.sampling
        prompt_logprobs = None
        if params.prompt_logprobs is not None:
            prompt_logprobs = [self._logprobs(target, params.prompt_logprobs) for target in row.logprob_targets]
        if row.num_samples == 0 or (self.withhold is not None and self.withhold(step, row)):
            return RowOutput(prompt_logprobs=prompt_logprobs)
        masks = self._masks.get(row.slot)
        require(masks is None or len(masks) == row.num_samples, f"not one mask for each sample: {row}")
        if masks is not None and not masks[0].any():
            return RowOutput(error="every token is masked")
        token_ids = self._verify(row, slot, context)
        logprobs = None
        if params.logprobs is not None:
            logprobs = [self._logprobs(token_id, params.logprobs) for token_id in token_ids]
        first = row.start + row.num_tokens - row.num_samples
        drafts = self.draft([*context[: first + 1], *token_ids]) if self.draft is not None else []
        return RowOutput(
            token_ids=token_ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs, draft_token_ids=drafts
        )

    def _verify(self, row: ScheduledRow, slot: _Slot, context: list[int]) -> list[int]:
        """The next token, and one more for each draft that turns out right."""
        token_ids: list[int] = []
        for position in range(len(context) - row.num_samples, len(context)):
            token_ids.append(self._next(slot, context[: position + 1], len(token_ids)))
            if position + 1 < len(context):
                if context[position + 1] != token_ids[-1]:
                    self.num_rejected_drafts += len(context) - position - 1
                    break
                self.num_accepted_drafts += 1
        return token_ids

    def _next(self, slot: _Slot, context: list[int], nth: int) -> int:
        """The token that follows a context, the row's ``nth`` sample."""
        token_id = self.next_token(context)
        masks = self._masks.get(slot.init.slot)
        mask = None if masks is None else masks[nth]
        while mask is not None and not mask[token_id // 32] >> token_id % 32 & 1:
            token_id = (token_id + 1) % self.info.vocab_size
        if len(context) - slot.init.prompt_len < slot.init.sampling.min_tokens:
            while token_id in slot.init.stop_token_ids:
                token_id = (token_id + 1) % self.info.vocab_size
        return token_id

    def _logprobs(self, token_id: int, num_top: int) -> TokenLogprobs:
        top = [((token_id + i) % self.info.vocab_size, -0.5 - i) for i in range(num_top)]
        return TokenLogprobs(token_id=token_id, logprob=-0.5, rank=1, top=top)
