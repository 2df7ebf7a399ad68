"""Text generation: prompts to go on with, how to sample, and how much at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from app.contract.request import SamplingParams
from app.errors import RequestError, TooManyTokensError
from app.serving.generator import Generator
from app.serving.types import GenerationRequest
from app.tasks.prompts import EncodedPrompt, Prompt, check_token_ids, unread_variables
from app.tasks.reply import ReplyOptions, bind, with_reply
from app.text.grammars.grammar import Grammar
from app.text.long_text import FEW_CHARACTERS

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
        """Most choices for a prompt."""

    @property
    def max_prompts(self) -> int:
        """Most prompts of a request; also most choices of all its prompts together."""

    @property
    def max_logprobs(self) -> int:
        """Most alternatives for a token."""

    @property
    def max_stop(self) -> int:
        """Most stop strings of a request, and most stop token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How a request asks for its tokens to be sampled, as :class:`SamplingParams` has it; None leaves a field open."""

    temperature: float | None = None
    top_p: float | None = None
    """0 is greedy."""
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
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may come; empty: all may."""
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
    """Most tokens of an answer when ``max_tokens`` is None, fewer where fewer fit the context. None: all that fit."""
    context: int | None = None
    """Most tokens of prompt and answer together. None: all that the model has; more are refused."""
    n: int = 1
    """Choices for each prompt."""
    form: Grammar | None = None
    """What each answer has to match; in a reply with thought or tools, what is neither."""
    reply: ReplyOptions | None = None
    """What the replies to conversations may be made of; None: of text alone, nothing is told apart."""
    priority: int = 0
    """Lower runs first."""
    cache_salt: str = ""
    """Cached prompt prefixes are shared only among requests with the same salt."""
    prediction: str = ""
    """What the client thinks the answer will be like; it changes nothing but how soon that comes."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that the client's protocol has for fields of this class and of its options, where they differ: errors name
    the client's. ``prompt`` stands for one of :attr:`prompts`."""

    @property
    def num_sequences(self) -> int:
        """Number of all choices of all prompts."""
        return len(self.prompts) * self.n

    def unread(self, generator: Generator) -> list[str]:
        """Variables for chat templates that these do not read, and what a model without thought does not heed, by the
        client's names."""
        unread = [name for prompt in self.prompts for name in unread_variables(prompt, generator)]
        if self.reply is None or generator.reply_format.thinks:
            return unread
        asked = [self.names[field] for field in self.reply.about_thought() if field in self.names]
        return list(dict.fromkeys([*unread, *asked]))

    def check(self, limits: GenerateLimits) -> None:
        """Bounds what one request can fan out into, before anything is made of it. Raises :class:`RequestError` 400."""
        sampling = self.sampling
        self._at_most("n", self.n, limits.max_n, "choices a prompt")
        self._at_most("prompt", len(self.prompts), limits.max_prompts, "prompts")
        self._at_most("n", self.num_sequences, limits.max_prompts, "choices of all prompts together")
        self._at_most("stop", len(sampling.stop), limits.max_stop, "stop strings")
        self._at_most("stop_token_ids", len(sampling.stop_token_ids), limits.max_stop, "stop token ids")
        for name, logprobs in (("logprobs", sampling.logprobs), ("prompt_logprobs", sampling.prompt_logprobs)):
            self._at_most(name, logprobs or 0, limits.max_logprobs, "alternatives a token")
        if self.reply is not None:
            self.reply.check()

    async def encode(self, generator: Generator, deadline: float | None) -> list[EncodedPrompt]:
        """Token ids of all prompts, one prompt after the other.

        Args:
            deadline: instant of ``time.monotonic`` up to which they are of use.

        Raises:
            RequestError: 400, a prompt does not fit the model or cannot be encoded, or its answer's form or a
                tool's schema cannot be honoured; 429, too many new forms wait to be tried; 504, the deadline passed.
        """
        if self.form is not None:
            await generator.grammars.check(self.form, param=self._name("form"), deadline=deadline)
        try:
            encoded = [await self._encode(prompt, generator, deadline) for prompt in self.prompts]
        except TooManyTokensError as error:
            raise self._prompt_too_long(generator, error.count) from None
        if not all(prompt.token_ids for prompt in encoded):
            param = self._name("prompt")
            raise RequestError(f"{param} has no tokens.", code="invalid_value", param=param)
        if not self.prediction:
            return encoded
        predicted = await self._encode_prediction(generator, deadline)
        return [dataclasses.replace(prompt, prediction_token_ids=predicted) for prompt in encoded]

    async def _encode_prediction(self, generator: Generator, deadline: float | None) -> list[int]:
        """Token ids of the prediction; its beginning alone is of use where it is longer than any answer."""
        most = self._most_context(generator)
        text = self.prediction[: FEW_CHARACTERS * most]
        token_ids = await generator.tokenizer.encode_async(text, add_special_tokens=False, deadline=deadline)
        return token_ids[:most]

    async def _encode(self, prompt: Prompt, generator: Generator, deadline: float | None) -> EncodedPrompt:
        prompt = with_reply(prompt, self.reply, generator)
        encoded = await prompt.encode(generator, self._most_context(generator), deadline)
        bound = bind(self.reply, self.form, prompt, encoded, generator)
        if bound.grammar is None:
            return dataclasses.replace(encoded, new_parser=bound.new_parser)
        if bound.grammar is not self.form:
            param = "tools" if self.reply and self.reply.tools else "form"
            await generator.grammars.check(bound.grammar, param=self._name(param), deadline=deadline)
        return dataclasses.replace(encoded, constraint=bound.grammar.source(), new_parser=bound.new_parser)

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
            prompts: what :meth:`encode` returned.
            request_ids: one a prompt.
            deadline: instant of ``time.monotonic`` at which they are given up.
            cache_salt: salt of the prefix cache, made of the one that was asked for.

        Raises:
            RequestError: 400, prompt and answer do not fit together, a token id is out of range or ``min_tokens`` above
                the most tokens that may come.
        """
        most = [self._most_tokens(generator, len(prompt.token_ids)) for prompt in prompts]
        params = self._sampling_params(generator, min(most))
        return [
            GenerationRequest(
                request_id=request_id,
                prompt_token_ids=prompt.token_ids,
                params=_params_for(prompt, params, limit),
                n=self.n,
                priority=self.priority,
                deadline=deadline,
                cache_salt=cache_salt,
                prediction_token_ids=prompt.prediction_token_ids,
                constraint=prompt.constraint,
                constraint_name=self._name("form"),
                new_parser=prompt.new_parser,
            )
            for request_id, prompt, limit in zip(request_ids, prompts, most, strict=True)
        ]

    def _most_tokens(self, generator: Generator, prompt_len: int) -> int:
        """Most tokens of an answer to a prompt. Raises :class:`RequestError` 400 when they do not fit behind it."""
        fitting = self._most_context(generator) - prompt_len
        if fitting < 1:  # one token is made even where none is asked for: the prompt's log-probabilities come with it
            raise self._prompt_too_long(generator, prompt_len)
        if self.max_tokens is None:
            return fitting if self.default_max_tokens is None else min(self.default_max_tokens, fitting)
        if self.max_tokens > fitting:
            prompt = self._name("prompt")
            parts = f"{prompt_len} in the {prompt}, {self.max_tokens} in the completion"
            total = prompt_len + self.max_tokens
            raise self._context_exceeded(generator, f"{total} tokens ({parts})", f"the {prompt} or the completion")
        return self.max_tokens

    def _most_context(self, generator: Generator) -> int:
        """Most tokens of prompt and answer together. Raises :class:`RequestError` 400 where more are asked for."""
        most = generator.max_model_len
        if self.context is not None and self.context > most:
            param = self._name("context")
            message = f"{param}: a context of {self.context} tokens is asked for, and there are {most}."
            raise RequestError(message, code="invalid_value", param=param)
        return most if self.context is None else self.context

    def _prompt_too_long(self, generator: Generator, count: int | None) -> RequestError:
        prompt = self._name("prompt")
        tokens = f"more than {self._most_context(generator)}" if count is None else str(count)
        requested = f"{tokens} tokens in the {prompt} alone, which leave no room for an answer"
        return self._context_exceeded(generator, requested, f"the {prompt}")

    def _context_exceeded(self, generator: Generator, requested: str, shorten: str) -> RequestError:
        """The error in OpenAI's words, by which LiteLLM and what is built on it know it for what it is."""
        most = self._most_context(generator)
        message = f"This model's maximum context length is {most} tokens. However, you requested {requested}. "
        message += f"Please shorten {shorten}."
        if self.context is not None:
            message += f" {self._name('context')} allows no more."
        elif most < generator.model_context:
            message += f" The model's own context is {generator.model_context} tokens; its KV cache holds no more here."
        return RequestError(message, code="context_length_exceeded", param=self._name("prompt"))

    def _sampling_params(self, generator: Generator, max_tokens: int) -> SamplingParams:
        asked = self.sampling
        if (asked.min_tokens or 0) > max_tokens:
            param = self._name("min_tokens")
            message = f"{param} ({asked.min_tokens}) exceeds the most tokens that may come ({max_tokens})."
            raise RequestError(message, code="invalid_value", param=param)
        vocab_size = generator.vocab_size
        check_token_ids(self._name("stop_token_ids"), asked.stop_token_ids, vocab_size)
        check_token_ids(self._name("logit_bias"), asked.logit_bias, vocab_size)
        check_token_ids(self._name("allowed_token_ids"), asked.allowed_token_ids, vocab_size)
        values: dict[str, Any] = dict(generator.default_params) if asked.model_defaults else {}
        values |= {name: value for name in _LEFT_OPEN if (value := getattr(asked, name)) is not None}
        if values.get("temperature", 1.0) < GREEDY_BELOW or values.get("top_p") == 0:
            values["temperature"] = 0.0
        values["top_p"] = values.get("top_p") or 1.0
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
            allowed_token_ids=asked.allowed_token_ids,
        )

    def _name(self, name: str) -> str:
        return self.names.get(name, name)

    def _at_most(self, name: str, count: int, limit: int, what: str) -> None:
        if count > limit:
            param = self._name(name)
            message = f"{param}: {count} {what} exceed the limit of {limit}."
            raise RequestError(message, code="invalid_value", param=param)


def _params_for(prompt: EncodedPrompt, params: SamplingParams, max_tokens: int) -> SamplingParams:
    """How an answer to one prompt is sampled, where that depends on the prompt."""
    ends = () if params.ignore_eos else prompt.ends
    if max_tokens == params.max_tokens and not ends:
        return params
    return msgspec.structs.replace(
        params, max_tokens=max_tokens, stop_token_ids=tuple(dict.fromkeys((*params.stop_token_ids, *ends)))
    )
