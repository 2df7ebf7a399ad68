"""The engine: admits requests, runs steps, turns their results into outputs. One thread, no tensors, no text."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from app.contract.config import EngineConfig
from app.contract.frames import EncodeOutput, EngineError, EngineOutput, EngineStats, StepRecord, TokenLogprobs
from app.contract.info import RunnerInfo
from app.contract.request import EncodeRequest, FinishReason, GenerateRequest, RequestStatus
from app.contract.step import EncodeResult, Plan, RowOutput, StepResult
from app.engine.admission import Limits, check
from app.engine.deadlines import Deadlines
from app.engine.encoding import EncodeStep, EncodingCore
from app.engine.kv.manager import KVManager
from app.engine.request import Request
from app.engine.scheduler import Scheduler
from app.engine.step import PlannedRow, Step
from app.engine.trace import log_plan

MAX_CONSECUTIVE_FAILURES = 3
_MAX_RECORDS = 1024

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """The tensor side. ``submit`` starts what a plan says, ``collect`` waits for its result; plans are collected in
    order.

    A :class:`~app.contract.step.StepPlan` gives a :class:`~app.contract.step.StepResult`, an
    :class:`~app.contract.step.EncodeBatch` (only where ``info.max_encode_len`` is above 0) an
    :class:`~app.contract.step.EncodeResult`.

    Either may raise: the plan's requests then end in an error, and their slots are bound anew before they are used
    again. A row whose token source is the device and whose slot sampled nothing in the step before is void: any
    result will do, it is not read.
    """

    @property
    def info(self) -> RunnerInfo: ...

    def submit(self, plan: Plan, /) -> Any: ...
    def collect(self, handle: Any, /) -> StepResult | EncodeResult: ...


class EngineFailedError(RuntimeError):
    """Step after step fails; only a fresh process can help."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """What was submitted and not yet collected."""

    step: Step | EncodeStep
    handle: Any


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
        if not info.kv_cache.groups and info.max_encode_len < 1:
            raise ValueError("a model without a KV cache group, which does not encode either")
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
        self._encoding = EncodingCore(config, vocab_size=info.vocab_size, max_len=info.max_encode_len, clock=clock)
        self._encodes_next = False
        """Whose turn it is while there are both rows to generate and sequences to encode."""
        self._under_way: deque[_UnderWay] = deque()
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
        return self._has_requests or bool(self._under_way or self._outputs) or self._encoding.has_outputs

    @property
    def _has_requests(self) -> bool:
        return bool(self._requests) or len(self._encoding) > 0

    # -- requests -----------------------------------------------------------------------------------------------

    def add_request(self, source: GenerateRequest) -> None:
        """Takes a request, or answers it with an error in the next step's outputs."""
        error = check(source, self._limits) or self._check_id(source.request_id)
        if error is not None:
            self.reject(source.request_id, source.client_index, error)
            return
        request = Request(source, self._num_received, self._eos_token_ids)
        self._num_received += 1
        self._requests[request.request_id] = request
        if request.deadline is not None:
            self._deadlines.watch(request.request_id, request.deadline)
        self._scheduler.add(request)

    def add_encode_request(self, source: EncodeRequest) -> None:
        """Takes a sequence to encode, or answers it with an error in the next step's outputs."""
        error = self._check_id(source.request_id)
        if error is not None:
            self._encoding.reject(source.request_id, source.client_index, error)
        else:
            self._encoding.add(source)

    def _check_id(self, request_id: str) -> EngineError | None:
        if request_id in self._requests or request_id in self._encoding:
            return EngineError("invalid_request", f"request id {request_id} is in use")
        return None

    def reject(self, request_id: str, client_index: int, error: EngineError) -> None:
        """Answers something that never became a request to generate."""
        self._emit(client_index, EngineOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=error))

    def reject_encode(self, request_id: str, client_index: int, error: EngineError) -> None:
        """Answers something that never became a request to encode."""
        self._encoding.reject(request_id, client_index, error)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests; each is confirmed by an output that says so. Unknown ids are ignored."""
        request_ids = list(request_ids)
        self._encoding.abort(request_ids)
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request, FinishReason.ABORT)

    def _expire(self, now: float) -> None:
        self._encoding.expire(now)
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
        planned = self._plan(started)
        if planned is not None and on_planned is not None:
            on_planned()
        submitted = planned is not None and self._submit(planned)
        if self._under_way and (not submitted or len(self._under_way) >= self._depth):
            self._collect(self._under_way.popleft())
        elif planned is None and self._has_requests:
            raise RuntimeError("requests wait, nothing is under way and nothing can be scheduled")
        if not self._has_requests and not self._under_way:
            self.pause()
            if self._config.integrity_checks:
                self.check_integrity()

    def _plan(self, now: float) -> Step | EncodeStep | None:
        """The next plan, of either kind in turn where there is work of both; None when nothing can be computed now."""
        planned: Step | EncodeStep | None = None
        if self._encodes_next:
            planned = self._encoding.schedule(now) or self._scheduler.schedule(now)
        else:
            planned = self._scheduler.schedule(now) or self._encoding.schedule(now)
        if planned is not None:
            self._encodes_next = isinstance(planned, Step)
        return planned

    def pause(self) -> None:
        """No step follows at once: the time until the next one is nobody's cost."""
        self._resumed = None

    def take_records(self) -> list[StepRecord]:
        """Records of the last steps since the last call, of the latest of them when nobody took them for long."""
        records, self._records = self._records, []
        return records[-_MAX_RECORDS:]

    def take_encoded(self) -> dict[int, list[EncodeOutput]]:
        """Answers to requests to encode since the last call, by client index."""
        return self._encoding.take_outputs()

    def take_outputs(self) -> dict[int, list[EngineOutput]]:
        """Outputs since the last call, by client index."""
        outputs, self._outputs = self._outputs, {}
        return outputs

    def _submit(self, step: Step | EncodeStep) -> bool:
        try:
            plan = step.snapshot()
            if self._config.trace_step:
                log_plan(plan)
            self._under_way.append(_UnderWay(step, self._runner.submit(plan)))
        except Exception as error:  # noqa: BLE001 - whatever the device side raises ends this step's requests only
            self._step_failed(step, error)
            return False
        return True

    def _collect(self, done: _UnderWay) -> None:
        step = done.step
        try:
            result = self._runner.collect(done.handle)
            _check_result(step, result)
        except Exception as error:  # noqa: BLE001 - as above
            self._step_failed(step, error)
            return
        self._num_failures = 0
        self._num_steps += 1
        now = self._clock()
        self._record(step, result, now)
        if isinstance(step, EncodeStep) and isinstance(result, EncodeResult):
            self._encoding.finish(step, result)
        elif isinstance(step, Step) and isinstance(result, StepResult):
            self._scheduler.retire(step)
            for planned, row_output in zip(step.rows, result.rows, strict=True):
                self._update(planned, row_output, now)

    def _record(self, step: Step | EncodeStep, result: StepResult | EncodeResult, now: float) -> None:
        seconds = now - (now if self._resumed is None else self._resumed)
        self._resumed = now
        self._records.append(
            StepRecord(
                step.num_tokens,
                seconds,
                result.kernel_seconds,
                decode=isinstance(step, Step) and step.is_decode,
                replayed=result.replayed,
                encode=isinstance(step, EncodeStep),
            )
        )
        if len(self._records) > 2 * _MAX_RECORDS:
            del self._records[:-_MAX_RECORDS]

    def _step_failed(self, step: Step | EncodeStep, error: Exception) -> None:
        kind = "step" if isinstance(step, Step) else "encode batch"
        _log.error("%s %d failed", kind, step.id, exc_info=error)
        message = f"the {kind} that computed this request failed"
        if isinstance(step, EncodeStep):
            self._encoding.fail(step, message)
        else:
            for request in self._scheduler.fail(step):
                self._fail_request(request, "engine_error", message)
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
            num_running=len(scheduler.running) + self._encoding.num_running,
            num_waiting=len(scheduler.waiting) + self._encoding.num_waiting,
            blocks_used=fullest.num_held,
            blocks_total=fullest.num_blocks,
            steps_total=self._num_steps,
            prompt_tokens_total=scheduler.num_prompt_tokens,
            generation_tokens_total=self._num_generated,
            preemptions_total=scheduler.num_preemptions,
            prefix_query_tokens_total=scheduler.num_query_tokens,
            prefix_hit_tokens_total=scheduler.num_hit_tokens,
            encode_tokens_total=self._encoding.num_tokens,
        )

    def check_integrity(self) -> None:
        """Raises :class:`~app.engine.kv.pool.IntegrityError` when the block allocator's books do not balance."""
        self._kv.check_integrity(self._scheduler.held_tables())


def _check_result(step: Step | EncodeStep, result: StepResult | EncodeResult) -> None:
    if isinstance(step, EncodeStep):
        if not isinstance(result, EncodeResult) or len(result.sequences) != len(step.entries):
            raise RuntimeError(f"not one result for each of {len(step.entries)} encoded sequences")
        return
    if not isinstance(result, StepResult) or len(result.rows) != len(step.rows):
        raise RuntimeError(f"not one result for each of {len(step.rows)} scheduled rows")
    for planned, output in zip(step.rows, result.rows, strict=True):
        if len(output.token_ids) > planned.row.num_samples:
            raise RuntimeError(f"{planned.row.num_samples} samples asked for, {len(output.token_ids)} returned")


def _describe(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
