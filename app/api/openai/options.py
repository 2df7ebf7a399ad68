"""What chat and completions both ask for, in the terms of the task."""

from __future__ import annotations

from app.api.openai.schemas.generation import GenerationBody
from app.errors import RequestError
from app.tasks.generate import SamplingOptions


def check_stream_options(body: GenerationBody) -> None:
    """Refuses ``stream_options`` without a stream. Raises :class:`RequestError` 400."""
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream.", code="invalid_value", param="stream_options")


def sampling_options(
    body: GenerationBody, *, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingOptions:
    """How to sample. Raises :class:`RequestError` 400 for biases of what is no token id."""
    return SamplingOptions(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_logit_bias(body),
        seed=body.seed,
        min_tokens=body.min_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _logit_bias(body: GenerationBody) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10:
            raise RequestError("logit_bias: keys are token ids.", code="invalid_value", param="logit_bias")
        bias[int(key)] = value
    return bias
