"""The engine: admits requests, runs steps, turns their results into outputs. One thread, no tensors, no text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from app.engine.admission import Limits, check
from app.engine.deadlines import Deadlines
from app.engine.kv.manager import KVManager
from app.engine.request import Request
from app.engine.scheduler import Scheduler
from app.engine.step import PlannedRow, Step
from app.types import (
    EngineConfig,
    EngineError,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestStatus,
    RowOutput,
    RunnerInfo,
    SchedulerOutput,
    StepRecord,
    StepResult,
    TokenLogprobs,
)

MAX_CONSECUTIVE_FAILURES = 3
_MAX_RECORDS = 1024

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """The tensor side. ``submit`` starts a step, ``collect`` waits for its result; steps are collected in order.

    Either may raise: the step's requests then end in an error, and their slots are bound anew before they are used
    again. A row whose token source is the device and whose slot sampled nothing in the step before is void: any
    result will do, it is not read.
    """

    @property
    def info(self) -> RunnerInfo: ...

    def submit(self, step: SchedulerOutput, /) -> Any: ...
    def collect(self, handle: Any, /) -> StepResult: ...


class EngineFailedError(RuntimeError):
    """Step after step fails; only a fresh process can help."""


class EngineCore:
    """Continuous batching over a :class:`Runner`. Nothing a request carries makes a method raise."""

    def __init__(self, runner: Runner, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError for a configuration that cannot work."""
        info = runner.info
        self._depth = info.pipeline_depth if config.pipeline_depth is None else config.pipeline_depth
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_logit_rows"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self._depth < 1:
            raise ValueError("pipeline_depth must be at least 1")
        self._runner = runner
        self._config = config
        self._clock = clock
        adapter = ""
        cache_dtypes = (group.dtype for group in info.kv_cache.groups)
        identity = (config.model_dir, *config.weights, info.dtype, adapter, *cache_dtypes)
        self._kv = KVManager(
            info.kv_cache, config, max_model_len=info.max_model_len, pipeline_depth=self._depth, identity=identity
        )
        self._limits = Limits(info.vocab_size, info.max_model_len, self._kv.num_tokens)
        self._scheduler = Scheduler(config, self._kv)
        self._handles: dict[int, Any] = {}
        # A token that the logits cannot have ends nothing, and has no place in a mask over them.
        self._eos_token_ids = [token_id for token_id in config.eos_token_ids if 0 <= token_id < info.vocab_size]
        self._requests: dict[str, Request] = {}
        self._num_received = 0
        self._deadlines = Deadlines()
        self._outputs: dict[int, list[EngineOutput]] = {}
        self._num_steps = 0
        self._num_failures = 0
        self._num_generated = 0
        self._records: list[StepRecord] = []
        self._resumed: float | None = None
        """When the step under way began: its predecessor ended, or there was work again; None while there is none."""

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
        return bool(self._requests or self._scheduler.in_flight or self._outputs)

    # -- requests -----------------------------------------------------------------------------------------------

    def add_request(self, source: EngineRequest) -> None:
        """Takes a request, or answers it with an error in the next step's outputs."""
        error = check(source, self._limits)
        if error is None and source.request_id in self._requests:
            error = EngineError("invalid_request", f"request id {source.request_id} is in use")
        if error is not None:
            self.reject(source.request_id, source.client_index, error)
            return
        request = Request(source, self._num_received, self._eos_token_ids)
        self._num_received += 1
        self._requests[request.request_id] = request
        if request.deadline is not None:
            self._deadlines.watch(request.request_id, request.deadline)
        self._scheduler.add(request)

    def reject(self, request_id: str, client_index: int, error: EngineError) -> None:
        """Answers something that never became a request."""
        self._emit(client_index, EngineOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=error))

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests; each is confirmed by an output that says so. Unknown ids are ignored."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request, FinishReason.ABORT)

    def _expire(self, now: float) -> None:
        for request_id in self._deadlines.pop_expired(now):
            request = self._requests[request_id]
            self._fail_request(request, "deadline_exceeded", "the deadline passed before the request was done")

    # -- steps --------------------------------------------------------------------------------------------------

    def step(self) -> list[EngineOutput]:
        """:meth:`advance`, and what it gave all clients."""
        self.advance()
        return [output for outputs in self.take_outputs().values() for output in outputs]

    def advance(self, on_planned: Callable[[], None] | None = None) -> None:
        """Starts the next step and, once as many are under way as the depth allows, finishes the oldest.

        Args:
            on_planned: called when :meth:`stats` tell of a new step that has not begun; it may take long.

        Outputs are had from :meth:`take_outputs`. Raises :class:`EngineFailedError` after too many failed steps in a
        row; their requests have been answered all the same.
        """
        started = self._clock()
        if self._resumed is None:
            self._resumed = started
        self._expire(started)
        in_flight = self._scheduler.in_flight
        planned = self._scheduler.schedule(started)
        if planned is not None and on_planned is not None:
            on_planned()
        submitted = planned is not None and self._submit(planned)
        if in_flight and (not submitted or len(in_flight) >= self._depth):
            self._collect(in_flight[0])
        elif planned is None and self._requests:
            raise RuntimeError("requests wait, nothing is under way and nothing can be scheduled")
        if not self._requests and not in_flight:
            self.pause()
        if self._config.integrity_checks and not self._requests and not in_flight:
            self.check_integrity()

    def pause(self) -> None:
        """No step follows at once: the time until the next one is nobody's cost."""
        self._resumed = None

    def take_records(self) -> list[StepRecord]:
        """Records of the last steps since the last call, of the latest of them when nobody took them for long."""
        records, self._records = self._records, []
        return records[-_MAX_RECORDS:]

    def take_outputs(self) -> dict[int, list[EngineOutput]]:
        """Outputs since the last call, by client index."""
        outputs, self._outputs = self._outputs, {}
        return outputs

    def _submit(self, step: Step) -> bool:
        try:
            self._handles[step.id] = self._runner.submit(step.snapshot())
        except Exception as error:  # noqa: BLE001 - whatever the device side raises ends this step's requests only
            self._step_failed(step, error)
            return False
        return True

    def _collect(self, step: Step) -> None:
        try:
            result = self._runner.collect(self._handles.pop(step.id))
            _check_result(step, result)
        except Exception as error:  # noqa: BLE001 - as above
            self._step_failed(step, error)
            return
        self._num_failures = 0
        self._num_steps += 1
        self._scheduler.retire(step)
        now = self._clock()
        self._record(step, result, now)
        for planned, row_output in zip(step.rows, result.rows, strict=True):
            self._update(planned, row_output, now)

    def _record(self, step: Step, result: StepResult, now: float) -> None:
        seconds = now - (now if self._resumed is None else self._resumed)
        self._resumed = now
        decode = all(planned.row.num_tokens == planned.row.num_samples for planned in step.rows)
        self._records.append(
            StepRecord(step.num_tokens, seconds, result.kernel_seconds, decode=decode, replayed=result.replayed)
        )
        if len(self._records) > 2 * _MAX_RECORDS:
            del self._records[:-_MAX_RECORDS]

    def _step_failed(self, step: Step, error: Exception) -> None:
        _log.error("step %d failed", step.id, exc_info=error)
        for request in self._scheduler.fail(step):
            self._fail_request(request, "engine_error", "the step that computed this request failed")
        self._num_failures += 1
        if self._num_failures >= MAX_CONSECUTIVE_FAILURES:
            message = f"{self._num_failures} steps failed in a row, the last with {_describe(error)}"
            raise EngineFailedError(message) from error

    # -- results ------------------------------------------------------------------------------------------------

    def _update(self, planned: PlannedRow, result: RowOutput, now: float) -> None:
        """Books one row's result, unless its request has left or gone back since."""
        request, row, epoch = planned
        if request.status is not RequestStatus.RUNNING or request.epoch != epoch:
            return
        if result.error is not None:
            self._kv.withdraw_all(request)  # numbers gone bad must not reach others through the cache
            self._fail_request(request, "engine_error", result.error)
            return
        request.prompt_logprobs += result.prompt_logprobs or []
        rejected = row.num_samples - len(result.token_ids)
        end = row.start + row.num_tokens - rejected
        if row.num_samples == 0:
            self._kv.give_back(request, end)
            return
        if rejected and not self._kv.can_rewind:
            self._scheduler.preempt(request)
            return
        if rejected:
            request.rewind(end)
        else:
            request.num_pending -= 1
        is_first = request.num_output_tokens == 0
        new_token_ids, finish_reason = request.append(result.token_ids)
        self._kv.publish(request, min(end, len(request.token_ids)))
        self._kv.give_back(request, end)
        if self._kv.can_rewind:
            request.has_drafter = bool(result.draft_token_ids)
            request.draft_token_ids = result.draft_token_ids
        if not new_token_ids:
            return
        self._num_generated += len(new_token_ids)
        if is_first:
            request.first_token = now
        logprobs = result.logprobs[: len(new_token_ids)] if result.logprobs is not None else None
        self._answer(request, new_token_ids, logprobs, is_first=is_first, finish_reason=finish_reason)

    def _answer(
        self,
        request: Request,
        new_token_ids: list[int],
        logprobs: list[TokenLogprobs] | None,
        *,
        is_first: bool,
        finish_reason: FinishReason | None,
    ) -> None:
        if finish_reason is not None:
            self._remove(request)
        prompt_logprobs = None
        if is_first and request.sampling.prompt_logprobs is not None:
            prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, []
        output = EngineOutput(
            request_id=request.request_id,
            new_token_ids=new_token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=finish_reason,
            stop_token_id=new_token_ids[-1] if finish_reason is FinishReason.STOP else None,
            num_cached_tokens=request.num_cached_tokens,
            timings=request.timings() if is_first or finish_reason is not None else None,
        )
        self._emit(request.client_index, output)

    def _fail_request(self, request: Request, code: str, message: str) -> None:
        self._finish(request, FinishReason.ERROR, EngineError(code, message))

    def _finish(self, request: Request, reason: FinishReason, error: EngineError | None = None) -> None:
        """Ends a request from outside its own token stream."""
        self._remove(request)
        output = EngineOutput(
            request_id=request.request_id,
            finish_reason=reason,
            num_cached_tokens=request.num_cached_tokens,
            error=error,
            timings=request.timings(),
        )
        self._emit(request.client_index, output)

    def _emit(self, client_index: int, output: EngineOutput) -> None:
        self._outputs.setdefault(client_index, []).append(output)

    def _remove(self, request: Request) -> None:
        self._scheduler.remove(request)
        del self._requests[request.request_id]
        self._deadlines.forget(request.request_id)
        request.finished = self._clock()

    # -- state --------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counts as they stand now."""
        scheduler, fullest = self._scheduler, self._kv.fullest()
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            blocks_used=fullest.num_held,
            blocks_total=fullest.num_blocks,
            steps_total=self._num_steps,
            prompt_tokens_total=scheduler.num_prompt_tokens,
            generation_tokens_total=self._num_generated,
            preemptions_total=scheduler.num_preemptions,
            prefix_query_tokens_total=scheduler.num_query_tokens,
            prefix_hit_tokens_total=scheduler.num_hit_tokens,
        )

    def check_integrity(self) -> None:
        """Raises :class:`~app.engine.kv.pool.IntegrityError` when the block allocator's books do not balance."""
        self._kv.check_integrity(self._scheduler.held_tables())


def _check_result(step: Step, result: StepResult) -> None:
    if len(result.rows) != len(step.rows):
        raise RuntimeError(f"{len(step.rows)} rows scheduled, {len(result.rows)} returned")
    for planned, output in zip(step.rows, result.rows, strict=True):
        if len(output.token_ids) > planned.row.num_samples:
            raise RuntimeError(f"{planned.row.num_samples} samples asked for, {len(output.token_ids)} returned")


def _describe(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
