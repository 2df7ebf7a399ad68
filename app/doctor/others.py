"""What lm-eval, clients of text-generation-inference, orchestrators and dashboards rely on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from app.client.sse import DONE
from app.doctor.check import Check, Target, at, decoded, equal, expect, has
from app.doctor.openai import PROMPT

_PROBES = ("/health", "/livez", "/readyz", "/startupz", "/ping")
_REQUEST_ID = "tuili-doctor-1"
_METRICS = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "cache_config_info",
    "prompt_tokens",
    "generation_tokens",
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "request_success",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "iteration_tokens_total",
)
_TGI_HEADERS = (
    "x-total-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
)
_TGI_FINISHES = ("length", "eos_token", "stop_sequence")
_TOKEN_IDS = list(range(65, 81))
"""Ids that every vocabulary has."""


def checks() -> Iterator[Check]:
    """Checks for lm-eval, clients of text-generation-inference, probes and metrics."""
    yield Check("lm-eval", "echo with logprobs", _echo)
    yield Check("lm-eval", "tokenize and detokenize", _tokenizer)
    yield Check("lm-eval", "tokenizer_info", _tokenizer_info)
    yield Check("TGI", "generate", _generate)
    yield Check("TGI", "generate_stream", _generate_stream)
    yield Check("TGI", "either way at the root", _root)
    yield Check("TGI", "info", _info)
    yield Check("TGI", "bad temperature", _flat_error)
    for path in _PROBES:
        yield Check("operations", f"probe {path}", partial(_probe, path))
    yield Check("operations", "metrics", _metrics)
    yield Check("operations", "request id", _request_id)


def _echo(target: Target) -> None:
    body = {"prompt": [_TOKEN_IDS], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    answer = decoded(target.post("/v1/completions", target.named(body)).content)
    logprobs = at(answer, "choices", 0, "logprobs", kind=dict)
    tokens, values, tops = (at(logprobs, name, kind=list) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for name, found in (("tokens", tokens), ("token_logprobs", values), ("top_logprobs", tops)):
        equal(f"the length of logprobs.{name}", len(found), len(_TOKEN_IDS) + 1)
    for place in range(1, len(_TOKEN_IDS)):
        value = at(values, place, kind=float)
        top = at(tops, place, kind=dict)
        own = top.get(tokens[place])
        expect(own is not None, f"token {place} of the prompt is not in its own top_logprobs")
        expect(own == value, f"token {place} of the prompt has logprob {value!r}, but {own!r} in its own top_logprobs")


def _tokenizer(target: Target) -> None:
    answer = decoded(target.post("/tokenize", {"prompt": PROMPT, "add_special_tokens": False}).content)
    tokens = at(answer, "tokens", kind=list)
    equal("count", at(answer, "count", kind=int), len(tokens))
    at(answer, "max_model_len", kind=int)
    back = decoded(target.post("/detokenize", {"tokens": tokens}).content)
    equal("the text of the tokens", at(back, "prompt", kind=str), PROMPT)


def _tokenizer_info(target: Target) -> None:
    info = decoded(target.get("/tokenizer_info").content)
    has(info, "eos_token", "bos_token", "pad_token", "chat_template")
    at(info, "eos_token", kind=str)


def _inputs(**parameters: Any) -> dict[str, Any]:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": 8, **parameters}}


def _generate(target: Target) -> None:
    response = target.post("/generate", _inputs(details=True, decoder_input_details=True))
    answer = decoded(response.content)
    text = at(answer, "generated_text", kind=str)
    details = at(answer, "details", kind=dict)
    finish = at(details, "finish_reason", kind=str)
    expect(finish in _TGI_FINISHES, f"finish_reason is {finish!r}, none of {', '.join(_TGI_FINISHES)}")
    tokens = at(details, "tokens", kind=list)
    equal("generated_tokens", at(details, "generated_tokens", kind=int), len(tokens))
    equal("the text of the tokens", "".join(map(_token_text, tokens)), text)
    has(details, "seed")
    prefill = at(details, "prefill", kind=list)
    expect(bool(prefill), "prefill is empty, though decoder_input_details was asked for")
    for token in prefill:
        has(token, "id", "text", "logprob")
    for name in _TGI_HEADERS:
        value = response.headers.get(name)
        expect(value is not None and value.isdigit(), f"the header {name} is {value or 'missing'}, not a number")


def _token_text(token: Any) -> str:
    """What a token adds to the generated text."""
    at(token, "id", kind=int)
    at(token, "logprob", kind=float)
    has(token, "special")
    text = at(token, "text", kind=str)
    return "" if token["special"] else text


def _generate_stream(target: Target) -> None:
    raw = target.events("/generate_stream", _inputs(details=True))
    expect(DONE not in raw, "the stream has a [DONE], which this protocol does not know")
    events = [decoded(event) for event in raw]
    for place, event in enumerate(events, start=1):
        equal("index", at(event, "index", kind=int), place)
        has(event, "generated_text", "details")
        if place < len(events):
            expect(event["generated_text"] is None, "generated_text is set before the last event")
            expect(event["details"] is None, "details is set before the last event")
    text = "".join(_token_text(at(event, "token", kind=dict)) for event in events)
    equal("generated_text of the last event", at(events[-1], "generated_text", kind=str), text)
    at(events[-1], "details", "finish_reason", kind=str)
    equal("generated_tokens", at(events[-1], "details", "generated_tokens", kind=int), len(events))


def _root(target: Target) -> None:
    greedy = _inputs()
    whole = decoded(target.post("/generate", greedy).content)
    expected = at(whole, "generated_text", kind=str)
    equal(
        "the text in the list", at(decoded(target.post("/", greedy).content), 0, "generated_text", kind=str), expected
    )
    last = decoded(target.events("/", {**greedy, "stream": True})[-1])
    equal("generated_text of the last event", at(last, "generated_text", kind=str), expected)


def _info(target: Target) -> None:
    info = decoded(target.get("/info").content)
    at(info, "model_id", kind=str)
    at(info, "version", kind=str)
    most, inputs = (at(info, name, kind=int) for name in ("max_total_tokens", "max_input_tokens"))
    expect(inputs < most, f"max_input_tokens is {inputs}, max_total_tokens {most}: no room for an answer")


def _flat_error(target: Target) -> None:
    response = target.refused("/generate", _inputs(temperature=-1))
    equal("the status", response.status_code, 422)
    error = decoded(response.content)
    at(error, "error", kind=str)
    equal("error_type", at(error, "error_type", kind=str), "validation")


def _probe(path: str, target: Target) -> None:
    """Asks a probe without a key, as orchestrators do."""
    target.get(path, with_key=False)


def _metrics(target: Target) -> None:
    page = target.get("/metrics").text
    missing = [name for name in _METRICS if not re.search(rf"^# TYPE vllm:{name}(_total)? ", page, re.MULTILINE)]
    expect(not missing, f"there is no vllm:{', vllm:'.join(missing)}")


def _request_id(target: Target) -> None:
    response = target.get("/v1/models", headers={"x-request-id": _REQUEST_ID})
    equal("the answer's X-Request-Id", response.headers.get("x-request-id"), _REQUEST_ID)
