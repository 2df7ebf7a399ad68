"""What the OpenAI SDK, LangChain and load tools rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.client.sse import DONE
from app.doctor.check import Check, ContractError, NotOfferedError, Target, at, decoded, equal, expect, has

PROTOCOL = "OpenAI"
PROMPT = "Count to twenty: one, two, three,"
_MAX_TOKENS = 16
_FINISHES = ("stop", "length")
_UNKNOWN_MODEL = "no-such-model-anywhere"


@dataclass(frozen=True)
class _Endpoint:
    name: str
    path: str
    prompt: Callable[[str], dict[str, Any]]
    """The fields of a body that hold a text."""
    kind: str
    chunk_kind: str
    text_path: tuple[str, ...]
    chunk_text_path: tuple[str, ...]

    def body(self, target: Target, **fields: Any) -> dict[str, Any]:
        return target.named({**self.prompt(PROMPT), "max_tokens": _MAX_TOKENS, "temperature": 0, **fields})


CHAT = _Endpoint(
    "chat",
    "/v1/chat/completions",
    lambda text: {"messages": [{"role": "user", "content": text}]},
    "chat.completion",
    "chat.completion.chunk",
    ("message", "content"),
    ("delta", "content"),
)
COMPLETIONS = _Endpoint(
    "completions",
    "/v1/completions",
    lambda text: {"prompt": text},
    "text_completion",
    "text_completion",
    ("text",),
    ("text",),
)


def checks() -> Iterator[Check]:
    """Checks for the OpenAI SDK and tools above it, the most basic first."""
    yield Check(PROTOCOL, "models", _models)
    for endpoint in (CHAT, COMPLETIONS):
        for name, run in (
            ("whole answer", _whole),
            ("stream", _stream),
            ("usage in a stream", _stream_usage),
            ("stop string", _stop),
            ("logprobs", _chat_logprobs if endpoint is CHAT else _completion_logprobs),
            ("unknown model", _unknown_model),
            ("bad temperature", _bad_temperature),
            ("over-long context", _long_context),
            ("malformed JSON", _malformed),
        ):
            yield Check(PROTOCOL, f"{endpoint.name}: {name}", partial(run, endpoint))


def _models(target: Target) -> None:
    listed = decoded(target.get("/v1/models").content)
    equal("object", at(listed, "object", kind=str), "list")
    cards = at(listed, "data", kind=list)
    expect(bool(cards), "data lists no model")
    for index, card in enumerate(cards):
        equal(f"data[{index}].object", at(card, "object", kind=str), "model")
        at(card, "id", kind=str)
        at(card, "created", kind=int)
        at(card, "owned_by", kind=str)


def _whole(endpoint: _Endpoint, target: Target) -> None:
    answer = _answer(endpoint, target)
    equal("object", at(answer, "object", kind=str), endpoint.kind)
    for name, kind in (("id", str), ("created", int), ("model", str)):
        at(answer, name, kind=kind)
    equal("the number of choices", len(at(answer, "choices", kind=list)), 1)
    choice = at(answer, "choices", 0, kind=dict)
    equal("choices[0].index", at(choice, "index", kind=int), 0)
    at(choice, *endpoint.text_path, kind=str)
    if endpoint is CHAT:
        equal("choices[0].message.role", at(choice, "message", "role", kind=str), "assistant")
    finish = at(choice, "finish_reason", kind=str)
    expect(finish in _FINISHES, f"finish_reason is {finish!r}, none of {', '.join(_FINISHES)}")
    _check_usage(answer)


def _answer(endpoint: _Endpoint, target: Target, **fields: Any) -> Any:
    return decoded(target.post(endpoint.path, endpoint.body(target, **fields)).content)


def _text(endpoint: _Endpoint, answer: Any) -> str:
    return at(answer, "choices", 0, *endpoint.text_path, kind=str)


def _check_usage(answer: Any) -> None:
    prompt, completion, total = (
        at(answer, "usage", name, kind=int) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    expect(prompt > 0, "usage.prompt_tokens is 0")
    expect(0 < completion <= _MAX_TOKENS, f"usage.completion_tokens is {completion}, max_tokens {_MAX_TOKENS}")
    equal("usage.total_tokens", total, prompt + completion)


def _chunks(endpoint: _Endpoint, target: Target, **fields: Any) -> list[Any]:
    events = target.events(endpoint.path, endpoint.body(target, stream=True, **fields))
    expect(events[-1] == DONE, "the stream does not end with [DONE]")
    chunks = [decoded(event) for event in events[:-1]]
    expect(bool(chunks), "the stream has no chunks")
    for chunk in chunks:
        if isinstance(chunk, dict) and chunk.get("error"):
            raise ContractError(f"the stream failed: {chunk['error']}")
        equal("a chunk's object", at(chunk, "object", kind=str), endpoint.chunk_kind)
        equal("a chunk's id", at(chunk, "id", kind=str), at(chunks[0], "id", kind=str))
    return chunks


def _stream(endpoint: _Endpoint, target: Target) -> None:
    chunks = _chunks(endpoint, target)
    for chunk in chunks:
        expect(bool(at(chunk, "choices", kind=list)), "a chunk without choices, though no usage was asked for")
    if endpoint is CHAT:
        _check_role(chunks)
    for chunk in chunks[:-1]:
        choice = at(chunk, "choices", 0, kind=dict)
        has(choice, "finish_reason")
        expect(choice["finish_reason"] is None, "finish_reason is set before the last chunk")
    finish = at(chunks[-1], "choices", 0, "finish_reason", kind=str)
    expect(finish in _FINISHES, f"the last finish_reason is {finish!r}, none of {', '.join(_FINISHES)}")
    streamed, whole = _joined(endpoint, chunks), _text(endpoint, _answer(endpoint, target))
    expect(streamed == whole, f"streamed, the text is {streamed!r}; whole, {whole!r}")


def _check_role(chunks: list[Any]) -> None:
    delta = at(chunks[0], "choices", 0, "delta", kind=dict)
    equal("the first delta's role", delta.get("role"), "assistant")
    expect(bool(delta.get("content")), "the role comes before the first text: load tools take that for the first token")


def _joined(endpoint: _Endpoint, chunks: list[Any]) -> str:
    """The text of a stream's only choice; a delta may lack one."""
    texts = []
    for chunk in chunks:
        for choice in at(chunk, "choices", kind=list):
            *parents, last = endpoint.chunk_text_path
            holder = at(choice, *parents, kind=dict)
            texts.append(at(holder, last, kind=str) if holder.get(last) is not None else "")
    return "".join(texts)


def _stream_usage(endpoint: _Endpoint, target: Target) -> None:
    *chunks, last = _chunks(endpoint, target, stream_options={"include_usage": True})
    equal("the last chunk's choices", at(last, "choices", kind=list), [])
    _check_usage(last)
    for chunk in chunks:
        expect(bool(at(chunk, "choices", kind=list)), "a chunk before the last has no choices")
    whole = _answer(endpoint, target)
    for name in ("prompt_tokens", "completion_tokens"):
        equal(f"the stream's {name}", at(last, "usage", name, kind=int), at(whole, "usage", name, kind=int))


def _stop(endpoint: _Endpoint, target: Target) -> None:
    """Stops at something that the model says anyway."""
    text = _text(endpoint, _answer(endpoint, target)).rstrip("\ufffd")
    expect(len(text) > 1, "the model says nothing to stop at")
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    whole = _answer(endpoint, target, stop=[stop])
    equal(f"the text up to the stop string {stop!r}", _text(endpoint, whole), expected)
    equal("finish_reason at a stop string", at(whole, "choices", 0, "finish_reason", kind=str), "stop")
    streamed = _joined(endpoint, _chunks(endpoint, target, stop=[stop]))
    equal(f"the streamed text up to the stop string {stop!r}", streamed, expected)


def _chat_logprobs(endpoint: _Endpoint, target: Target) -> None:
    answer = _answer(endpoint, target, logprobs=True, top_logprobs=2)
    tokens = at(answer, "choices", 0, "logprobs", "content", kind=list)
    expect(bool(tokens), "logprobs.content is empty")
    for token in tokens:
        _check_token(token)
        top = at(token, "top_logprobs", kind=list)
        equal("the number of top_logprobs", len(top), 2)
        for other in top:
            _check_token(other)
    bare = _answer(endpoint, target, logprobs=True)
    unasked = at(bare, "choices", 0, "logprobs", "content", 0, "top_logprobs", kind=list)
    equal("top_logprobs, not asked for,", unasked, [])


def _check_token(token: Any) -> None:
    at(token, "token", kind=str)
    expect(at(token, "logprob", kind=float) <= 0, "a logprob is above 0")
    has(token, "bytes")


def _completion_logprobs(endpoint: _Endpoint, target: Target) -> None:
    logprobs = at(_answer(endpoint, target, logprobs=2), "choices", 0, "logprobs", kind=dict)
    tokens = at(logprobs, "tokens", kind=list)
    expect(bool(tokens), "logprobs.tokens is empty")
    for name in ("token_logprobs", "top_logprobs", "text_offset"):
        equal(f"the length of logprobs.{name}", len(at(logprobs, name, kind=list)), len(tokens))
    for top in logprobs["top_logprobs"]:
        expect(isinstance(top, dict) and bool(top), "an element of logprobs.top_logprobs is no object with tokens")


def _refused(endpoint: _Endpoint, target: Target, status: int, body: Any) -> None:
    response = target.refused(endpoint.path, body)
    equal("the status", response.status_code, status)
    error = at(decoded(response.content), "error", kind=dict)
    at(error, "message", kind=str)
    at(error, "type", kind=str)
    has(error, "param", "code")


def _unknown_model(endpoint: _Endpoint, target: Target) -> None:
    _refused(endpoint, target, 404, {**endpoint.body(target), "model": _UNKNOWN_MODEL})


def _bad_temperature(endpoint: _Endpoint, target: Target) -> None:
    _refused(endpoint, target, 400, endpoint.body(target, temperature=-1))


def _malformed(endpoint: _Endpoint, target: Target) -> None:
    _refused(endpoint, target, 400, b'{"model": ')


def _long_context(endpoint: _Endpoint, target: Target) -> None:
    cards = at(decoded(target.get("/v1/models").content), "data", kind=list)
    card = next((card for card in cards if isinstance(card, dict) and card.get("id") == target.model), {})
    limit = card.get("max_model_len")
    if not isinstance(limit, int):
        raise NotOfferedError("/v1/models does not tell max_model_len")
    _refused(endpoint, target, 400, {**endpoint.body(target), **endpoint.prompt("one " * (limit + 1))})
