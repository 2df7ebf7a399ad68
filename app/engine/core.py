"""The engine: admits requests, runs steps, turns their results into outputs. One thread, no tensors, no text."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from app.contract.config import EngineConfig
from app.contract.frames import (
    EncodeOutput,
    EngineError,
    EngineOutput,
    EngineStats,
    Holdings,
    StepRecord,
    Vocabulary,
)
from app.contract.request import EncodeRequest, GenerateRequest
from app.contract.step import EncodeResult, StepResult
from app.engine.adapters import AdapterTable
from app.engine.admission import Limits, check
from app.engine.answers import Answers
from app.engine.constraints.desk import ConstraintDesk
from app.engine.deadlines import Deadlines
from app.engine.drafts.desk import DraftDesk
from app.engine.encoding import EncodeStep, EncodingCore
from app.engine.kv.choose import new_kv_manager
from app.engine.kv.tiered import TieredKVManager
from app.engine.kv.tiers.fingerprint import adapter_contents
from app.engine.records import StepRecords
from app.engine.registry import Registry
from app.engine.request import Request
from app.engine.runner import Runner, check_result
from app.engine.scheduler import Scheduler
from app.engine.step import Step
from app.engine.trace import log_plan

MAX_CONSECUTIVE_FAILURES = 3
_BEHIND_SECONDS = 0.005
"""Seconds between two copies of what ended requests left, while there is no work."""
_TEND_SECONDS = 0.5
"""Seconds for which requests that wait for their grammar are left alone, at most."""

_log = logging.getLogger(__name__)


class EngineFailedError(RuntimeError):
    """Too many steps in a row have failed; only a fresh process can help."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that was submitted and not yet collected."""

    step: Step | EncodeStep
    handle: Any


class EngineCore:
    """Continuous batching over a :class:`Runner`. Nothing a request carries makes a method raise."""

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            on_news: called from another thread when :attr:`has_work` may have become true without a call of ours.

        Raises:
            ValueError: a configuration that cannot work, or an adapter that cannot be loaded.
        """
        info = runner.info
        self._depth = info.pipeline_depth if config.pipeline_depth is None else config.pipeline_depth
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_logit_rows"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self._depth < 1:
            raise ValueError("pipeline_depth must be at least 1")
        if not info.kv_cache.groups and info.max_encode_len < 1:
            raise ValueError("a model without a KV cache group, which does not encode either")
        self._runner = runner
        self._config = config
        self._clock = clock
        self._kv = new_kv_manager(runner, config, pipeline_depth=self._depth, clock=clock)
        self._limits = Limits(info.vocab_size, info.max_model_len, self._kv.num_tokens)
        self._drafts = DraftDesk(config, enabled=self._takes_drafts())
        self._scheduler = Scheduler(config, self._kv, self._drafts)
        self._encoding = EncodingCore(config, vocab_size=info.vocab_size, max_len=info.max_encode_len, clock=clock)
        self._encodes_next = False
        """Whether the next step encodes, while there are both requests to generate and requests to encode."""
        self._under_way: deque[_UnderWay] = deque()
        # A token that the logits cannot have ends nothing, and has no place in a mask over them.
        self._eos_token_ids = [token_id for token_id in config.eos_token_ids if 0 <= token_id < info.vocab_size]
        contents_of = adapter_contents if isinstance(self._kv, TieredKVManager) else None
        self.adapters = AdapterTable(runner, config, on_news, contents_of=contents_of)
        self._desk = ConstraintDesk(info.vocab_size, self._eos_token_ids, on_news)
        self._num_received = 0
        self._deadlines = Deadlines()
        self._answers = Answers()
        self._registry = Registry(
            self._kv, self._scheduler, self._desk, self._drafts, self._deadlines, self._answers, clock=clock
        )
        self._num_steps = 0
        self._num_failures = 0
        self._records = StepRecords()

    def _takes_drafts(self) -> bool:
        """Whether rows may have drafts; where they were asked for and may not, the log says why."""
        info, drafter = self._runner.info, self._config.draft
        if drafter == "none" or not info.kv_cache.groups:
            return False
        if not self._kv.can_rewind:
            _log.warning("no drafts (%s): the model's recurrent state cannot go back by a token", drafter)
        elif not info.verifies_drafts:
            how = f"with {info.via}" if info.via else f"on {info.device}"
            _log.warning("no drafts (%s): rows of several samples are not computed bit for bit %s", drafter, how)
        return self._kv.can_rewind and info.verifies_drafts

    @property
    def num_steps(self) -> int:
        """Steps computed so far."""
        return self._num_steps

    @property
    def max_kv_tokens(self) -> int:
        """Tokens of the longest sequence that the whole KV cache holds."""
        return self._limits.max_kv_tokens

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` has anything to do."""
        return (
            self._has_requests
            or bool(self._under_way or self._answers)
            or self._encoding.has_outputs
            or self._desk.has_outcomes
        )

    @property
    def _has_requests(self) -> bool:
        """Whether there are requests to compute; those that wait for their grammar are not."""
        return len(self._registry) > len(self._desk) or len(self._encoding) > 0

    @property
    def longest_pause(self) -> float | None:
        """Seconds after which :meth:`tend` is to be called, if there is no work before; None: it need not be."""
        if self._kv.has_backlog:
            return _BEHIND_SECONDS
        if not len(self._desk):
            return None
        expires = self._deadlines.next
        return _TEND_SECONDS if expires is None else max(0.0, min(_TEND_SECONDS, expires - self._clock()))

    def tend(self) -> None:
        """Looks after requests that wait for something else than a step (grammars that are there, deadlines), and after
        what ended ones left in the KV cache."""
        self._registry.settle()
        self._expire(self._clock())
        if not self._has_requests:
            self._kv.write_behind(idle=True)

    # -- requests -----------------------------------------------------------------------------------------------

    def add_request(self, source: GenerateRequest) -> None:
        """Takes a request, or answers it with an error in the next step's outputs."""
        error = check(source, self._limits) or self._check_id(source.request_id)
        if error is not None:
            self.reject(source.request_id, source.client_index, error)
            return
        adapter = self.adapters.find(source.adapter) if source.adapter else None
        if isinstance(adapter, EngineError):
            self.reject(source.request_id, source.client_index, adapter)
            return
        request = Request(source, self._num_received, self._eos_token_ids, adapter)
        self._num_received += 1
        self._registry.add(request, source.constraint)

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Takes what constrained requests need to know of the tokenizer."""
        self._desk.set_vocabulary(vocabulary)

    def add_encode_request(self, source: EncodeRequest) -> None:
        """Takes a sequence to encode, or answers it with an error in the next step's outputs."""
        error = self._check_id(source.request_id)
        if error is not None:
            self._encoding.reject(source.request_id, source.client_index, error)
        else:
            self._encoding.add(source)

    def _check_id(self, request_id: str) -> EngineError | None:
        if request_id in self._registry or request_id in self._encoding:
            return EngineError("invalid_request", f"request id {request_id} is in use")
        return None

    def reject(self, request_id: str, client_index: int, error: EngineError) -> None:
        """Answers a request to generate that the engine did not take."""
        self._answers.reject(request_id, client_index, error)

    def reject_encode(self, request_id: str, client_index: int, error: EngineError) -> None:
        """Answers a request to encode that the engine did not take."""
        self._encoding.reject(request_id, client_index, error)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests; each is confirmed by an output that says so. Unknown ids are ignored."""
        request_ids = list(request_ids)
        self._encoding.abort(request_ids)
        self._registry.abort(request_ids)

    def _expire(self, now: float) -> None:
        self._encoding.expire(now)
        self._registry.expire(now)

    # -- steps --------------------------------------------------------------------------------------------------

    def step(self) -> list[EngineOutput]:
        """:meth:`advance`, and what it gave all clients."""
        self.advance()
        return [output for outputs in self.take_outputs().values() for output in outputs]

    def advance(self, on_planned: Callable[[], None] | None = None) -> None:
        """Starts the next step and, once as many are under way as the depth allows, finishes the oldest.

        Args:
            on_planned: called before a planned step is submitted, which may take long; :meth:`stats` count it already.

        Outputs are had from :meth:`take_outputs` and :meth:`take_encoded`.

        Raises:
            EngineFailedError: after too many failed steps in a row; their requests have been answered all the same.
        """
        started = self._clock()
        self._records.begin(started)
        if len(self._desk):
            self._registry.settle()
        self._expire(started)
        planned = self._plan(started)
        if planned is not None and on_planned is not None:
            on_planned()
        submitted = planned is not None and self._submit(planned)
        if self._under_way and (not submitted or len(self._under_way) >= self._depth):
            self._collect(self._under_way.popleft())
        elif planned is None and self._has_requests:
            raise RuntimeError("requests wait, nothing is under way and nothing can be scheduled")
        self._kv.write_behind(idle=False)
        if not self._has_requests and not self._under_way:
            self.pause()
            if self._config.integrity_checks:
                self.check_integrity()

    def _plan(self, now: float) -> Step | EncodeStep | None:
        """The next step, of either kind in turn where there is work for both; None when nothing can be computed now."""
        planned: Step | EncodeStep | None = None
        if self._encodes_next:
            planned = self._encoding.schedule(now) or self._scheduler.schedule(now)
        else:
            planned = self._scheduler.schedule(now) or self._encoding.schedule(now)
        if planned is not None:
            self._encodes_next = isinstance(planned, Step)
        return planned

    def pause(self) -> None:
        """No step follows at once: the time until the next one counts for no step."""
        self._records.pause()

    def take_records(self) -> list[StepRecord]:
        """Records of the steps since the last call, or only the latest of them when that was long ago."""
        return self._records.take()

    def take_encoded(self) -> dict[int, list[EncodeOutput]]:
        """Answers to requests to encode since the last call, by client index."""
        return self._encoding.take_outputs()

    def take_outputs(self) -> dict[int, list[EngineOutput]]:
        """Outputs since the last call, by client index."""
        return self._answers.take()

    def _submit(self, step: Step | EncodeStep) -> bool:
        try:
            plan = step.snapshot()
            if self._config.trace_step:
                log_plan(plan)
            masks = self._desk.masks(step) if isinstance(step, Step) else None
            try:
                handle = self._runner.submit(plan, masks)
            finally:
                if masks is not None:
                    masks.wait()  # whatever happened: until then the grammars are in use
                    self._desk.totals.mask_seconds += masks.seconds
            self._under_way.append(_UnderWay(step, handle))
        except Exception as error:  # noqa: BLE001 - whatever the device side raises ends this step's requests only
            self._step_failed(step, error)
            return False
        return True

    def _collect(self, done: _UnderWay) -> None:
        step = done.step
        try:
            result = self._runner.collect(done.handle)
            check_result(step, result)
        except Exception as error:  # noqa: BLE001 - as above
            self._step_failed(step, error)
            return
        self._num_failures = 0
        self._num_steps += 1
        now = self._clock()
        seconds = self._records.add(step, result, now)
        if isinstance(step, EncodeStep) and isinstance(result, EncodeResult):
            self._encoding.finish(step, result)
        elif isinstance(step, Step) and isinstance(result, StepResult):
            self._scheduler.retire(step)
            self._drafts.observe(step, seconds)
            for planned, row_output in zip(step.rows, result.rows, strict=True):
                self._registry.update(planned, row_output, now)

    def _step_failed(self, step: Step | EncodeStep, error: Exception) -> None:
        kind = "step" if isinstance(step, Step) else "encode batch"
        _log.error("%s %d failed", kind, step.id, exc_info=error)
        message = f"the {kind} that computed this request failed"
        if isinstance(step, EncodeStep):
            self._encoding.fail(step, message)
        else:
            for request in self._scheduler.fail(step):
                self._registry.fail(request, EngineError("engine_error", message))
        self._num_failures += 1
        if self._num_failures >= MAX_CONSECUTIVE_FAILURES:
            message = f"{self._num_failures} steps failed in a row, the last with {_describe(error)}"
            raise EngineFailedError(message) from error

    # -- state --------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counts as they stand now."""
        scheduler, fullest = self._scheduler, self._kv.fullest()
        return EngineStats(
            num_running=len(scheduler.running) + self._encoding.num_running,
            num_waiting=len(scheduler.waiting) + self._encoding.num_waiting + len(self._desk),
            blocks_used=fullest.num_held,
            blocks_total=fullest.num_blocks,
            steps_total=self._num_steps,
            prompt_tokens_total=scheduler.num_prompt_tokens,
            generation_tokens_total=self._registry.num_generated,
            draft_tokens_total=self._drafts.num_drafts,
            accepted_draft_tokens_total=self._drafts.num_right,
            forced_tokens_total=self._desk.totals.forced_tokens,
            mask_seconds_total=self._desk.totals.mask_seconds,
            grammars_compiled_total=self._desk.totals.grammars,
            compile_seconds_total=self._desk.totals.compile_seconds,
            preemptions_total=scheduler.num_preemptions,
            prefix_query_tokens_total=scheduler.num_query_tokens,
            prefix_hit_tokens_total=scheduler.num_hit_tokens,
            encode_tokens_total=self._encoding.num_tokens,
            prefix_tiers=self._kv.tier_stats(),
        )

    def survey(self) -> Holdings:
        """Who holds the KV cache now."""
        return self._kv.survey(self._scheduler.running)

    def close(self, seconds: float) -> None:
        """Keeps what the prefix cache's tier on disk does not have yet, as far as that can be done in so many seconds.
        No step may follow."""
        self._kv.close(seconds)

    def check_integrity(self) -> None:
        """Raises :class:`~app.engine.kv.pool.IntegrityError` when the block allocator's books do not balance."""
        self._kv.check_integrity(self._scheduler.held_tables())


def _describe(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
