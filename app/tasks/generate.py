"""Text generation: prompts to go on with, how to sample, and how much at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from app.contract.request import SamplingParams
from app.errors import RequestError
from app.serving.generation import Generator
from app.serving.types import GenerationRequest
from app.tasks.prompts import EncodedPrompt, Prompt, check_token_ids

GREEDY_BELOW = 1e-5
"""Temperatures below this divide logits into infinities; they are greedy anyway."""
_LEFT_OPEN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "include_stop",
    "ignore_eos",
    "skip_special_tokens",
)


class GenerateLimits(Protocol):
    """What the server lets one request ask for."""

    @property
    def max_n(self) -> int:
        """Choices a prompt."""

    @property
    def max_prompts(self) -> int:
        """Prompts a request; also choices of all its prompts together."""

    @property
    def max_logprobs(self) -> int:
        """Alternatives a token."""

    @property
    def max_stop(self) -> int:
        """Stop strings, and likewise stop token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How a request asks for its tokens to be sampled, as :class:`SamplingParams` has it; None leaves a field open."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """0 or less keeps every token."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    """Taken modulo 2**64."""
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    model_defaults: bool = True
    """Take what is left open from the model's generation config, else from :class:`SamplingParams`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateTask:
    """What one client's request asks for."""

    prompts: Sequence[Prompt]
    sampling: SamplingOptions
    max_tokens: int | None = None
    """Most tokens of an answer."""
    default_max_tokens: int | None = None
    """The same when ``max_tokens`` is None, and less where less fits the context. None: all that fits."""
    n: int = 1
    """Choices a prompt."""
    priority: int = 0
    """Lower runs first."""
    cache_salt: str = ""
    """Cached prompt prefixes are shared only among requests with the same salt."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that the client's protocol has for fields of this class and of its options, where they differ: errors name
    the client's. ``prompt`` stands for one of :attr:`prompts`."""

    @property
    def num_sequences(self) -> int:
        """Number of all choices of all prompts."""
        return len(self.prompts) * self.n

    def check(self, limits: GenerateLimits) -> None:
        """Bounds what one request can fan out into, before anything is made of it. Raises :class:`RequestError` 400."""
        sampling = self.sampling
        self._at_most("n", self.n, limits.max_n, "choices a prompt")
        self._at_most("prompt", len(self.prompts), limits.max_prompts, "prompts")
        self._at_most("n", self.num_sequences, limits.max_prompts, "choices of all prompts together")
        self._at_most("stop", len(sampling.stop), limits.max_stop, "stop strings")
        self._at_most("stop_token_ids", len(sampling.stop_token_ids), limits.max_stop, "stop token ids")
        logprobs = max(sampling.logprobs or 0, sampling.prompt_logprobs or 0)
        self._at_most("logprobs", logprobs, limits.max_logprobs, "alternatives a token")

    async def encode(self, generator: Generator, deadline: float | None) -> list[EncodedPrompt]:
        """Token ids of all prompts, one prompt after the other.

        Args:
            deadline: instant of ``time.monotonic`` up to which they are of use.

        Raises:
            RequestError: 400, a prompt does not fit the model or cannot be encoded; 504, the deadline passed.
        """
        max_tokens = generator.max_model_len
        encoded = [await prompt.encode(generator, max_tokens, deadline) for prompt in self.prompts]
        if not all(prompt.token_ids for prompt in encoded):
            param = self._name("prompt")
            raise RequestError(f"{param} has no tokens.", code="invalid_value", param=param)
        return encoded

    def requests(
        self,
        generator: Generator,
        prompts: Sequence[EncodedPrompt],
        request_ids: Sequence[str],
        deadline: float | None,
        cache_salt: str,
    ) -> list[GenerationRequest]:
        """What to submit, one request a prompt.

        Args:
            prompts: of :meth:`encode`.
            request_ids: one a prompt.
            deadline: instant of ``time.monotonic`` at which they are given up.
            cache_salt: of the prefix cache, made of the one that was asked for.

        Raises:
            RequestError: 400, a token id out of range or ``min_tokens`` above the most tokens that may come.
        """
        most = [self._most_tokens(generator, len(prompt.token_ids)) for prompt in prompts]
        params = self._sampling_params(generator, min(most))
        return [
            GenerationRequest(
                request_id=request_id,
                prompt_token_ids=prompt.token_ids,
                params=params if params.max_tokens == limit else msgspec.structs.replace(params, max_tokens=limit),
                n=self.n,
                priority=self.priority,
                deadline=deadline,
                cache_salt=cache_salt,
            )
            for request_id, prompt, limit in zip(request_ids, prompts, most, strict=True)
        ]

    def _most_tokens(self, generator: Generator, prompt_len: int) -> int:
        if self.max_tokens is not None:
            return self.max_tokens
        # With no room at all, admission refuses the prompt and says how long it is.
        fitting = max(1, generator.remaining_tokens(prompt_len))
        return fitting if self.default_max_tokens is None else min(self.default_max_tokens, fitting)

    def _sampling_params(self, generator: Generator, max_tokens: int) -> SamplingParams:
        asked = self.sampling
        if (asked.min_tokens or 0) > max_tokens:
            param = self._name("min_tokens")
            message = f"{param} ({asked.min_tokens}) exceeds the most tokens that may come ({max_tokens})."
            raise RequestError(message, code="invalid_value", param=param)
        vocab_size = generator.vocab_size
        for name, token_ids in (("stop_token_ids", asked.stop_token_ids), ("logit_bias", asked.logit_bias)):
            check_token_ids(self._name(name), token_ids, vocab_size)
        values: dict[str, Any] = dict(generator.default_params) if asked.model_defaults else {}
        values |= {name: value for name in _LEFT_OPEN if (value := getattr(asked, name)) is not None}
        if values.get("temperature", 1.0) < GREEDY_BELOW:
            values["temperature"] = 0.0
        values["top_k"] = max(0, values.get("top_k", 0))
        return SamplingParams(
            **values,
            max_tokens=max_tokens,
            stop=asked.stop,
            stop_token_ids=asked.stop_token_ids,
            # The engine's key has 64 bits without a sign.
            seed=None if asked.seed is None else asked.seed % 2**64,
            logprobs=asked.logprobs,
            prompt_logprobs=asked.prompt_logprobs,
            logit_bias=dict(asked.logit_bias),
        )

    def _name(self, name: str) -> str:
        return self.names.get(name, name)

    def _at_most(self, name: str, count: int, limit: int, what: str) -> None:
        if count > limit:
            param = self._name(name)
            message = f"{param}: {count} {what} exceed the limit of {limit}."
            raise RequestError(message, code="invalid_value", param=param)
