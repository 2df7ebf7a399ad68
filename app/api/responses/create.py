"""``POST /v1/responses``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from app.answers.answers import Answers
from app.answers.database import AnswersError, ConversationTooLongError
from app.api.caller import owner
from app.api.endpoint import Endpoint, ReadRequest
from app.api.openapi import takes
from app.api.responses import options
from app.api.responses.errors import not_found, unavailable
from app.api.responses.form import read_form
from app.api.responses.items import KeptItem, kept_item, messages_of, response_of, unknown_fields, user_item
from app.api.responses.openapi import answers
from app.api.responses.schemas.answer import ResponseEvent, ResponseObject
from app.api.responses.schemas.body import ResponsesBody
from app.api.responses.schemas.items import MAX_ITEMS, InputReference
from app.api.responses.writer import Asked, ResponseWriter
from app.api.service import Service
from app.errors import RequestError
from app.tasks.generate import GenerateTask
from app.tasks.prompts import Conversation

_LEFT_FOR_ANSWERS = 512
"""Tokens that truncation leaves for an answer of no stated length."""
_THREAD_THRESHOLD = 1 << 20
"""Bytes of a kept conversation from which reading it leaves the event loop."""
_MAX_REFERENCES = 256
"""Items of a request that stand for kept ones."""
_EXAMPLES = {
    "question": {"summary": "One question", "value": {"input": "Why is the sky blue?", "max_output_tokens": 64}},
    "turn": {
        "summary": "The next turn, as a stream",
        "value": {
            "previous_response_id": "resp_0123456789abcdef0123456789abcdef",
            "instructions": "Answer in one sentence.",
            "input": [{"role": "user", "content": "And at dusk?"}],
            "stream": True,
        },
    },
}


class _Output(msgspec.Struct):
    """Of a kept response what is said."""

    output: list[dict[str, Any]]


async def read_response(body: ResponsesBody, service: Service) -> ReadRequest:
    """What a body asks for.

    Raises:
        RequestError: 400; 404, an item that is referred to is not kept; 503, what is kept cannot be read.
    """
    options.check_supported(body)
    if not body.input and body.previous_response_id is None:
        raise RequestError("input is required.", code="missing_required_parameter", param="input")
    given = [] if body.input is None or isinstance(body.input, str) else body.input
    before = await _conversation(body, service.answers)
    own = await _own_items(body, before, service.answers)
    if len(before) + len(own) > MAX_ITEMS:
        message = f"input: the conversation has more than {MAX_ITEMS} items."
        raise RequestError(message, code="invalid_value", param="input")
    asked = Asked(body=body, items=own, answers=service.answers, owner=owner())
    unheeded = [*unknown_fields(given), *options.unheeded(body)]
    if body.store and not service.answers.are_kept:
        unheeded.append("store")
    return ReadRequest(
        task=_task(body, [*before, *own]),
        writer=partial(ResponseWriter, asked=asked),
        stream=bool(body.stream),
        model=body.model,
        timeout=body.timeout,
        unheeded=unheeded,
    )


def _task(body: ResponsesBody, items: Sequence[KeptItem]) -> GenerateTask:
    form = read_form(body)
    return GenerateTask(
        prompts=[_prompt(body, items)],
        sampling=options.sampling_options(body),
        max_tokens=body.max_output_tokens,
        form=form.grammar if form else None,
        reply=options.reply_options(body),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        names={
            "prompt": "input",
            "logprobs": "top_logprobs",
            "max_tokens": "max_output_tokens",
            "form": form.param if form else "form",
            "reasoning_budget": "thinking_token_budget",
        },
    )


def _prompt(body: ResponsesBody, items: Sequence[KeptItem]) -> Conversation:
    variables = dict(body.chat_template_kwargs or {})
    names = {name: f"chat_template_kwargs.{name}" for name in variables}
    effort = body.reasoning.effort if body.reasoning else None
    if effort not in (None, "none") and "reasoning_effort" not in variables:
        variables["reasoning_effort"] = effort
        names["reasoning_effort"] = "reasoning.effort"
    room = None
    if body.truncation == "auto":
        room = _LEFT_FOR_ANSWERS if body.max_output_tokens is None else body.max_output_tokens
    return Conversation(
        messages=messages_of(items, body.instructions),
        template_kwargs=variables,
        names=names,
        template=body.chat_template,
        room=room,
    )


async def _conversation(body: ResponsesBody, answers: Answers) -> list[KeptItem]:
    """Items of the conversation that a body goes on from. Raises :class:`RequestError` 400, 503."""
    previous = body.previous_response_id
    if previous is None:
        return []
    items = await kept_items(answers, previous)
    if items is None:
        if answers.under_way(previous, owner()) is not None:
            message = f"The response {previous!r} is still being made."
            raise RequestError(message, code="response_in_progress", param="previous_response_id")
        raise not_found(previous, status=400, param="previous_response_id")
    return items


async def kept_items(answers: Answers, response_id: str, *, with_answer: bool = True) -> list[KeptItem] | None:
    """Items of the conversation that a kept response is the last of; None where there is none.

    Args:
        with_answer: the response's own among them.

    Raises:
        RequestError: 400, they are too many; 503, they cannot be read.
    """
    try:
        turns = await answers.conversation(response_id, owner())
    except ConversationTooLongError:
        message = "The conversation is longer than what is read at once; begin another one."
        raise RequestError(message, code="context_length_exceeded", param="previous_response_id") from None
    except AnswersError as error:
        raise unavailable(error) from None
    if turns is None:
        return None
    if sum(len(asked) + len(answered) for asked, answered in turns) < _THREAD_THRESHOLD:
        return _items_of(turns, with_answer=with_answer)
    return await asyncio.to_thread(_items_of, turns, with_answer=with_answer)


def _items_of(turns: Sequence[tuple[bytes, bytes]], *, with_answer: bool) -> list[KeptItem]:
    items: list[KeptItem] = []
    for place, (asked, answered) in enumerate(turns):
        items += msgspec.json.decode(asked)
        if with_answer or place + 1 < len(turns):
            items += msgspec.json.decode(answered, type=_Output).output
    return items


async def _own_items(body: ResponsesBody, before: Sequence[KeptItem], answers: Answers) -> list[KeptItem]:
    """The request's own items; what they refer to stands in its place. Raises :class:`RequestError` 400, 404, 503."""
    if body.input is None:
        return []
    if isinstance(body.input, str):
        return [user_item(body.input)]
    own: list[KeptItem] = []
    found = _References(answers, before)
    for place, item in enumerate(body.input):
        if isinstance(item, InputReference):
            own.append(await found.get(item.id, f"input[{place}].id"))
        else:
            own.append(kept_item(item))
    return own


class _References:
    """Kept items by id, looked up where they are not of the conversation itself."""

    def __init__(self, answers: Answers, items: Sequence[KeptItem]) -> None:
        self._answers = answers
        self._items = {item["id"]: item for item in items}
        self._looked_up: set[str] = set()

    async def get(self, item_id: str, param: str) -> KeptItem:
        """An item. Raises :class:`RequestError` 400, 404, 503."""
        response_id = response_of(item_id)
        if item_id not in self._items and response_id is not None and response_id not in self._looked_up:
            self._looked_up.add(response_id)
            if len(self._looked_up) > _MAX_REFERENCES:
                message = f"input refers to more than {_MAX_REFERENCES} responses."
                raise RequestError(message, code="invalid_value", param="input")
            items = await kept_items(self._answers, response_id) or []
            self._items |= {item["id"]: item for item in items}
        if item_id not in self._items:
            message = f"There is no item {item_id!r} of yours that is kept."
            raise RequestError(message, status=404, code="item_not_found", param=param)
        return self._items[item_id]


CREATE = Endpoint(
    path="/v1/responses",
    name="create_response",
    summary="Answer with items",
    description="""Answers a text, items, or the next turn of a kept response, whole or as a stream of events.

Answers are kept, unless `store` is false or the server keeps none; the field `store` of the answer says which.""",
    request_body=takes(ResponsesBody, _EXAMPLES),
    responses=answers(ResponseObject, ResponseEvent),
    schema=ResponsesBody,
    look_up=read_response,
    id_prefix="resp",
    unique_ids=True,
)
