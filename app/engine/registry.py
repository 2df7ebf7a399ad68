"""Requests to generate that the engine has taken: from their arrival to the last output that tells of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from app.contract.frames import EngineError, TokenLogprobs
from app.contract.request import FinishReason, RequestStatus
from app.contract.step import RowOutput
from app.engine.answers import Answers
from app.engine.constraints.base import ConstraintError
from app.engine.constraints.desk import ConstraintDesk
from app.engine.deadlines import Deadlines
from app.engine.drafts.desk import DraftDesk
from app.engine.kv.manager import KVManager
from app.engine.request import Request
from app.engine.scheduler import Scheduler
from app.engine.step import PlannedRow


class Registry:
    """All requests to generate by their id: who waits where, what results give them, how they end."""

    def __init__(
        self,
        kv: KVManager,
        scheduler: Scheduler,
        desk: ConstraintDesk,
        drafts: DraftDesk,
        deadlines: Deadlines,
        answers: Answers,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._kv, self._scheduler, self._desk, self._drafts = kv, scheduler, desk, drafts
        self._deadlines, self._answers, self._clock = deadlines, answers, clock
        self._requests: dict[str, Request] = {}
        self.num_generated = 0
        """Tokens generated so far."""

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        """Whether a request has not ended."""
        return request_id in self._requests

    def add(self, request: Request, constraint: str) -> None:
        """Takes a request: the scheduler's next, or one that waits for its grammar first."""
        self._requests[request.request_id] = request
        self._drafts.begin(request)
        if request.adapter is not None:
            request.adapter.num_requests += 1
        if request.deadline is not None:
            self._deadlines.watch(request.request_id, request.deadline)
        if not request.is_constrained:
            self._scheduler.add(request)
        elif (error := self._desk.add(request, constraint)) is not None:
            self.fail(request, error)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests at their clients' wish. Unknown ids are ignored."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request, FinishReason.ABORT)

    def expire(self, now: float) -> None:
        """Ends requests whose deadline has passed."""
        for request_id in self._deadlines.pop_expired(now):
            error = EngineError("deadline_exceeded", "the deadline passed before the request was done")
            self.fail(self._requests[request_id], error)

    def fail(self, request: Request, error: EngineError) -> None:
        """Ends a request with an error."""
        self._finish(request, FinishReason.ERROR, error)

    def settle(self) -> None:
        """Hands requests whose grammar is there to the scheduler."""
        for request, error in self._desk.settle():
            if error is not None:
                self.fail(request, error)
            else:
                self._scheduler.add(request)
                self._begin(request, self._clock())

    def _begin(self, request: Request, now: float) -> None:
        """Gives a request the tokens that its grammar begins with; they go out with the first that is sampled."""
        try:
            request.untold, finish_reason = self._desk.follow(request, [])
        except ConstraintError as error:
            self.fail(request, EngineError("invalid_constraint", str(error)))
            return
        self.num_generated += len(request.untold)
        if finish_reason is not None:
            self._tell(request, [], finish_reason, None, now)

    def update(self, planned: PlannedRow, result: RowOutput, now: float) -> None:
        """Takes over one row's result, unless its request has left or was rewound since."""
        request, row, epoch = planned
        if request.status is not RequestStatus.RUNNING or request.epoch != epoch:
            return
        if result.error is not None:
            self._kv.withdraw_all(request)  # numbers gone bad must not reach others through the cache
            self.fail(request, self._desk.why(request) or EngineError("engine_error", result.error))
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
        if row.num_samples > 1:
            self._drafts.note(request, row.num_samples - 1, max(0, len(result.token_ids) - 1))
        if rejected:
            request.rewind(end)
        else:
            request.num_pending -= 1
        try:
            new_token_ids, finish_reason = (
                self._desk.follow(request, result.token_ids)
                if request.is_constrained
                else request.append(result.token_ids)
            )
        except ConstraintError as error:
            self.fail(request, EngineError("invalid_constraint", str(error)))
            return
        self._kv.publish(request, min(end, len(request.token_ids)))
        self._kv.give_back(request, end)
        if self._kv.can_rewind and finish_reason is None:
            self._drafts.propose(request, result.draft_token_ids, len(self._scheduler.running))
        if request.first_token is None and (ending := self._kv.ending(request, end)) is not None:
            self._kv.keep(ending)  # the prompt is copied while the answer is computed
        if new_token_ids:
            self._tell(request, new_token_ids, finish_reason, result.logprobs, now)

    def _tell(
        self,
        request: Request,
        new_token_ids: list[int],
        finish_reason: FinishReason | None,
        logprobs: list[TokenLogprobs] | None,
        now: float,
    ) -> None:
        """Sends a request's new tokens, and ends it if there is a reason."""
        self.num_generated += len(new_token_ids)
        is_first = request.first_token is None
        if is_first:
            request.first_token = now
        if finish_reason is not None:
            self._remove(request)
        logprobs = logprobs[: len(new_token_ids)] if logprobs is not None else None
        new_token_ids, request.untold = request.untold + new_token_ids, []
        self._answers.tokens(request, new_token_ids, logprobs, is_first=is_first, finish_reason=finish_reason)

    def _finish(self, request: Request, reason: FinishReason, error: EngineError | None = None) -> None:
        """Ends a request that none of its own tokens ended."""
        self._remove(request)
        self._answers.ended(request, reason, error)

    def _remove(self, request: Request) -> None:
        if not (request.is_constrained and self._desk.drop(request)):
            self._scheduler.remove(request)
        del self._requests[request.request_id]
        self._drafts.end(request)
        if request.adapter is not None:
            request.adapter.num_requests -= 1
        self._deadlines.forget(request.request_id)
        request.finished = self._clock()
