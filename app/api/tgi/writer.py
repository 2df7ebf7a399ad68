"""Answers in the shapes of text-generation-inference."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from msgspec import UNSET

from app.api.endpoint import AnswerHead, AnswerWriter
from app.api.json import encode
from app.api.tgi.schemas import Details, GenerateBody, Generated, GenerateParameters, StreamDetails, StreamEvent
from app.api.tgi.tokens import TokenWriter, prefill_token
from app.api.timing import generation_phases, server_timing
from app.contract.request import FinishReason
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta

EVENT = b"data:%b\n\n"
"""An event, ``EVENT % data``: without the space behind the colon, as clients of this protocol expect it."""


class GenerateWriter(AnswerWriter):
    """Writes one answer to one text.

    Args:
        in_list: put the whole answer in a list.
    """

    def __init__(
        self, head: AnswerHead, body: GenerateBody, parameters: GenerateParameters, *, stream: bool, in_list: bool
    ) -> None:
        self._inputs = body.inputs
        self._parameters = parameters
        self._stream = stream
        self._in_list = in_list
        self._started = time.monotonic()
        self._tokens = TokenWriter(head.tokenizer)
        self._text = ""
        self._num_tokens = 0

    def headers(self, generations: Sequence[Generation]) -> Mapping[str, str]:
        """Counts, and times in milliseconds: of a stream those that are known before the first token leaves."""
        (generation,) = generations
        timing = server_timing(generations)
        if self._stream:
            return _prompt_headers(generation) | timing
        return _headers(generation, self._started) | timing

    def frames(self, _prompt: int, delta: ChoiceDelta, generations: Sequence[Generation]) -> list[bytes]:
        """One event a token."""
        (generation,) = generations
        with_top = bool(self._parameters.top_n_tokens)
        self._text += delta.text
        tokens = self._tokens.tokens(delta)
        events = []
        for place, (token, logprob) in enumerate(zip(tokens, delta.tokens, strict=True), start=1):
            self._num_tokens += 1
            ends = delta.finish_reason is not None and place == len(tokens)
            event = StreamEvent(
                index=self._num_tokens,
                token=token,
                top_tokens=self._tokens.top_tokens(logprob) if with_top else UNSET,
                generated_text=self._full_text(self._text) if ends else None,
                details=self._stream_details(delta, generation) if ends else None,
            )
            events.append(EVENT % encode(event))
        return events

    def end(self, _generations: Sequence[Generation]) -> Sequence[bytes]:
        """Nothing: the last token's event is the last one."""
        return ()

    def whole(self, completions: Sequence[Sequence[Completion]], generations: Sequence[Generation]) -> bytes:
        """JSON of the whole answer."""
        ((completion,),) = completions
        (generation,) = generations
        answer = self._generated(completion, generation)
        return encode([answer] if self._in_list else answer)

    def _generated(self, completion: Completion, generation: Generation) -> Generated:
        text = self._full_text(completion.text)
        parameters = self._parameters
        if not (parameters.details or parameters.decoder_input_details or parameters.top_n_tokens):
            return Generated(generated_text=text)
        writer = self._tokens
        details = Details(
            finish_reason=_finish_reason(completion),
            generated_tokens=generation.usage.completion_tokens,
            seed=_seed(generation),
            prefill=[prefill_token(token) for token in completion.prompt_logprobs or ()],
            tokens=writer.tokens(completion),
            top_tokens=[writer.top_tokens(token) for token in completion.tokens] if parameters.top_n_tokens else UNSET,
        )
        return Generated(generated_text=text, details=details)

    def _full_text(self, text: str) -> str:
        return self._inputs + text if self._parameters.return_full_text else text

    def _stream_details(self, delta: ChoiceDelta, generation: Generation) -> StreamDetails | None:
        if not self._parameters.details:
            return None
        return StreamDetails(
            finish_reason=_finish_reason(delta),
            generated_tokens=generation.usage.completion_tokens,
            seed=_seed(generation),
            input_length=generation.usage.prompt_tokens,
        )


def _finish_reason(part: ChoiceDelta | Completion) -> str:
    if part.finish_reason is FinishReason.LENGTH:
        return "length"
    return "eos_token" if part.stop_reason is None else "stop_sequence"


def _seed(generation: Generation) -> int | None:
    return generation.seed if generation.request.params.temperature else None


def _prompt_headers(generation: Generation) -> dict[str, str]:
    """What is known before the first token leaves."""
    queue = generation_phases([generation]).queue
    headers = {"x-accel-buffering": "no", "x-prompt-tokens": str(generation.usage.prompt_tokens)}
    return headers if queue is None else headers | {"x-queue-time": _milliseconds(queue)}


def _headers(generation: Generation, started: float) -> dict[str, str]:
    """Counts and times of a whole answer."""
    known = generation_phases([generation])
    inference = (known.prefill or 0.0) + (known.decode or 0.0)
    tokens = generation.usage.completion_tokens
    return _prompt_headers(generation) | {
        "x-total-time": _milliseconds(time.monotonic() - started),
        "x-inference-time": _milliseconds(inference),
        "x-time-per-token": _milliseconds(inference / max(1, tokens)),
        "x-generated-tokens": str(tokens),
    }


def _milliseconds(seconds: float) -> str:
    return str(int(1000 * seconds))
