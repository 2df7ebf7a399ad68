"""Writes one response, whole or as a stream of events, and has it kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from msgspec import UNSET

from app.answers.answers import Answers
from app.answers.database import AnswersError, KeptAnswer
from app.api.endpoint import AnswerHead, AnswerWriter
from app.api.json import encode
from app.api.responses import options
from app.api.responses.errors import error_detail
from app.api.responses.items import KeptItem, with_ids
from app.api.responses.output import Output
from app.api.responses.schemas.answer import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseEvent,
    ResponseFailure,
    ResponseObject,
    ResponseStatus,
    ResponseUsage,
)
from app.api.responses.schemas.body import ResponsesBody
from app.api.sse import DATA_EVENT
from app.api.timing import server_timing
from app.contract.request import FinishReason
from app.errors import RequestError
from app.serving.generation import CANCELLED, Completion, Generation
from app.serving.types import ChoiceDelta
from app.text.parsers.reply import CallDelta, ToolCall

_EVENT = b"event: %b\n%b"
_DONE = DATA_EVENT % b"[DONE]"
_CANCELLING = frozenset({CANCELLED, "client_left"})
"""Codes of errors by which somebody ended the answer."""

_log = structlog.get_logger("tuili.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a response answers, and where it is kept."""

    body: ResponsesBody
    items: Sequence[KeptItem]
    """The request's own items; ids may be missing."""
    answers: Answers
    owner: str

    @property
    def is_kept(self) -> bool:
        """Whether the answer is to be kept."""
        return self.body.store is not False and self.answers.are_kept


class ResponseWriter(AnswerWriter):
    """Writes one response."""

    def __init__(self, head: AnswerHead, asked: Asked) -> None:
        self._head = head
        self._asked = asked
        self._frames: list[bytes] = []
        self._sequence = 0
        self._streams = False
        self._output = Output(head.id, self._emit)
        self._finish: FinishReason | None = None
        self._is_kept = asked.is_kept
        self._final: ResponseObject | None = None
        """The response in its last state."""

    def headers(self, generations: Sequence[Generation]) -> Mapping[str, str]:
        """Where the time went."""
        return server_timing(generations)

    def begin(self, generations: Sequence[Generation]) -> Iterable[bytes]:
        """The response, made and under way; it can be found from here on."""
        self._streams = True
        answers, owner = self._asked.answers, self._asked.owner
        answers.begin(self._head.id, owner, lambda: encode(self._response("in_progress", generations)))
        for kind in ("response.created", "response.in_progress"):
            self._emit(ResponseEvent(type=kind, response=self._response("in_progress", generations)))
        return self._taken()

    def frames(self, _prompt: int, delta: ChoiceDelta, _generations: Sequence[Generation]) -> Iterable[bytes]:
        """Events for each part of a delta."""
        for part in delta.reply:
            self._output.add(part, delta.tokens)
        self._finish = delta.finish_reason
        return self._taken()

    async def conclude(
        self,
        generations: Sequence[Generation],
        *,
        completions: Sequence[Sequence[Completion]] | None = None,
        error: RequestError | None = None,
    ) -> None:
        """Ends the last item, and keeps the response, unless it failed before the client knew of it."""
        if self._final is not None:
            return
        if completions is not None:
            self._add_whole(completions[0][0])
        status = self._status(error)
        self._output.close("completed" if status == "completed" else "incomplete")
        self._final = final = self._response(status, generations, error)
        self._asked.answers.end(self._head.id, self._asked.owner)
        if final.store and (error is None or self._streams):
            final.store = self._is_kept = await self._keep(final)

    def end(self, _generations: Sequence[Generation]) -> Iterable[bytes]:
        """The response in its last state, and ``[DONE]``."""
        final = self._concluded()
        self._emit(ResponseEvent(type=f"response.{final.status}", response=final))
        return [*self._taken(), _DONE]

    def fail(self, error: RequestError, _generations: Sequence[Generation]) -> Iterable[bytes]:
        """The error, the response as far as it came, and ``[DONE]``."""
        detail = error_detail(error)
        self._emit(
            ResponseEvent(type="error", error=detail, message=detail.message, param=detail.param, code=detail.code)
        )
        self._emit(ResponseEvent(type="response.failed", response=self._concluded()))
        return [*self._taken(), _DONE]

    def whole(self, _completions: Sequence[Sequence[Completion]], _generations: Sequence[Generation]) -> bytes:
        """JSON of the response."""
        return encode(self._concluded())

    def _concluded(self) -> ResponseObject:
        if self._final is None:
            raise RuntimeError("the response goes on")
        return self._final

    def _add_whole(self, completion: Completion) -> None:
        calls = 0
        for part in completion.parts:
            if isinstance(part, ToolCall):
                self._output.add(CallDelta(calls, part.id, part.name, part.arguments))
                calls += 1
            else:
                self._output.add(part, completion.tokens)
        self._finish = completion.finish_reason

    def _status(self, error: RequestError | None) -> ResponseStatus:
        if error is not None:
            return "cancelled" if error.code in _CANCELLING else "failed"
        return "incomplete" if self._finish is FinishReason.LENGTH else "completed"

    async def _keep(self, final: ResponseObject) -> bool:
        """Has the response kept; whether it is. Where it is not, the answer and the log say so."""
        answer = KeptAnswer(
            id=final.id,
            owner=self._asked.owner,
            created=time.time(),
            previous=final.previous_response_id,
            input=msgspec.json.encode(with_ids(self._asked.items, final.id)),
            body=encode(final),
        )
        try:
            await self._asked.answers.put(answer)
        except AnswersError as error:
            _log.warning("response not kept", response_id=final.id, reason=str(error))
            return False
        return True

    def _emit(self, event: ResponseEvent) -> None:
        """Notes an event of the stream, as it is now."""
        if not self._streams:
            return
        event.sequence_number = self._sequence
        self._sequence += 1
        self._frames.append(_EVENT % (event.type.encode(), DATA_EVENT % encode(event)))

    def _taken(self) -> list[bytes]:
        frames, self._frames = self._frames, []
        return frames

    def _response(
        self, status: ResponseStatus, generations: Sequence[Generation], error: RequestError | None = None
    ) -> ResponseObject:
        """The response as far as it has come."""
        head, body, params = self._head, self._asked.body, generations[0].request.params
        has_ended = status != "in_progress"
        failure = None if error is None else ResponseFailure(code=_failure_code(error), message=error.message)
        return ResponseObject(
            id=head.id,
            created_at=head.created,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            error=failure,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None,
            model=head.model,
            previous_response_id=body.previous_response_id,
            instructions=body.instructions,
            output=self._output.items,
            tools=options.shown_tools(body),
            tool_choice=options.shown_choice(body.tool_choice),
            truncation=body.truncation or "disabled",
            parallel_tool_calls=body.parallel_tool_calls is not False,
            text=options.shown_text(body),
            top_p=params.top_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            top_logprobs=body.top_logprobs or 0,
            temperature=params.temperature,
            reasoning=options.shown_reasoning(body),
            usage=_usage(generations[0]) if has_ended else None,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            store=self._is_kept,
            metadata=dict(body.metadata or {}),
            safety_identifier=body.safety_identifier,
            prompt_cache_key=body.prompt_cache_key,
            user=UNSET if body.user is None else body.user,
        )


def _failure_code(error: RequestError) -> str:
    return "server_error" if error.status >= 500 or error.code is None else error.code


def _usage(generation: Generation) -> ResponseUsage:
    usage = generation.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
