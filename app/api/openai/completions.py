"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from app.api.endpoint import AnswerHead, Endpoint, ReadRequest
from app.api.forms import read_form
from app.api.openai.best_of import num_choices
from app.api.openai.logprobs import TextOffsets, completion_logprobs, joined
from app.api.openai.openapi import answers
from app.api.openai.options import answer_limits, check_stream_options, check_whole, sampling_options
from app.api.openai.schemas.completions import Completion, CompletionBody, CompletionChoice, CompletionLogprobs
from app.api.openai.schemas.usage import Usage
from app.api.openai.writer import ChunkUsage, OpenAIWriter
from app.api.openapi import takes
from app.errors import RequestError
from app.serving import generation as serving
from app.serving.generation import Generation
from app.serving.types import ChoiceDelta, TokenLogprob
from app.tasks.generate import GenerateTask
from app.tasks.prompts import InfillPrompt, Prompt, TextPrompt, TokenPrompt
from app.text.detokenizer import IncrementalDetokenizer

DEFAULT_MAX_TOKENS = 16
_EXAMPLES = {
    "text": {"summary": "A text", "value": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}},
    "score": {
        "summary": "Log-probabilities of a prompt of token ids",
        "value": {"prompt": [[504, 3575, 282]], "max_tokens": 0, "echo": True, "logprobs": 1},
    },
}


def read_completion(body: CompletionBody) -> ReadRequest:
    """What a body asks for. Raises :class:`RequestError` 400."""
    check_stream_options(body)
    check_whole(body)
    if body.echo and body.truncate_prompt_tokens is not None:
        message = "truncate_prompt_tokens is not supported with echo."
        raise RequestError(message, code="unsupported_parameter", param="truncate_prompt_tokens")
    if body.suffix:
        _check_infill(body)
    form = read_form(body)
    task = GenerateTask(
        prompts=[_read_prompt(prompt, body) for prompt in _given_prompts(body)],
        sampling=sampling_options(body, logprobs=body.logprobs, prompt_logprobs=body.logprobs if body.echo else None),
        **answer_limits(body, default=DEFAULT_MAX_TOKENS, may_be_empty=bool(body.echo)),
        n=num_choices(body),
        form=form.grammar if form else None,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        names={"n": "n" if body.best_of is None else "best_of", "form": form.param if form else "form"},
    )
    return ReadRequest(
        task=task,
        writer=lambda head: CompletionWriter(head, body),
        stream=bool(body.stream),
        model=body.model,
        timeout=body.timeout,
    )


def _check_infill(body: CompletionBody) -> None:
    """Refuses what a prompt with a suffix cannot have. Raises :class:`RequestError` 400."""
    if not isinstance(_given_prompts(body)[0], str):
        raise RequestError("suffix needs prompts that are texts.", code="invalid_value", param="suffix")
    if body.truncate_prompt_tokens is not None:
        message = "truncate_prompt_tokens is not supported with suffix."
        raise RequestError(message, code="unsupported_parameter", param="truncate_prompt_tokens")


def _given_prompts(body: CompletionBody) -> Sequence[str | list[int]]:
    """The prompts one by one, whichever form they came in."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _read_prompt(prompt: str | list[int], body: CompletionBody) -> Prompt:
    """A prompt, with what ``echo`` repeats of it."""
    with_offsets = bool(body.echo) and body.logprobs is not None
    if isinstance(prompt, str) and body.suffix:
        return InfillPrompt(
            prefix=prompt,
            suffix=body.suffix,
            add_special_tokens=body.add_special_tokens is not False,
            parse_special=body.parse_special is True,
            with_offsets=with_offsets,
        )
    if isinstance(prompt, str):
        return TextPrompt(
            text=prompt,
            add_special_tokens=body.add_special_tokens is not False,
            parse_special=body.parse_special is not False,
            keep_last=body.truncate_prompt_tokens,
            with_offsets=with_offsets,
        )
    return TokenPrompt(
        token_ids=prompt,
        with_text=bool(body.echo),
        skip_special_tokens=body.skip_special_tokens is not False,
        keep_last=body.truncate_prompt_tokens,
    )


@dataclass(slots=True)
class _ChoiceState:
    offsets: TextOffsets
    begun: bool = False


@dataclass(slots=True)
class _StreamedPrompt:
    held: list[ChoiceDelta] = field(default_factory=list)
    """Deltas that came before the prompt's log-probabilities, which belong to another choice."""
    choices: dict[int, _ChoiceState] = field(default_factory=dict)


class CompletionWriter(OpenAIWriter):
    """Writes the answers to one or several prompts; the index of a choice is prompt index * n + choice."""

    def __init__(self, head: AnswerHead, body: CompletionBody) -> None:
        super().__init__(head, body)
        self._prompts = head.prompts
        self._tokenizer = head.tokenizer
        self._n = body.n or 1
        self._echo = bool(body.echo)
        self._with_logprobs = body.logprobs is not None
        self._top = body.logprobs
        self._skip_special_tokens = body.skip_special_tokens is not False
        self._streamed = [_StreamedPrompt() for _ in head.prompts]

    def chunks(self, prompt: int, delta: ChoiceDelta, generation: Generation, usage: ChunkUsage) -> list[Completion]:
        """The echo comes with a choice's first delta; what shows nothing makes no chunk."""
        state = self._streamed[prompt]
        state.held.append(delta)
        if self._echo and self._with_logprobs and generation.prompt_logprobs is None:
            return []
        deltas, state.held = state.held, []
        choices = [self._delta_choice(prompt, each, generation.prompt_logprobs) for each in deltas]
        return [self._completion([choice], usage) for choice in choices if self._shows(choice)]

    def usage_chunk(self, usage: Usage) -> Completion:
        """The chunk without choices."""
        return self._completion([], usage)

    def answer(self, completions: Sequence[Sequence[serving.Completion]], usage: Usage) -> Completion:
        """All choices of all prompts."""
        choices = [
            self._choice(prompt, completion, self._new_choice(prompt), completion.prompt_logprobs)
            for prompt, choices in enumerate(completions)
            for completion in choices
        ]
        return self._completion(choices, usage)

    def _delta_choice(
        self, prompt: int, delta: ChoiceDelta, prompt_logprobs: Sequence[TokenLogprob] | None
    ) -> CompletionChoice:
        choices = self._streamed[prompt].choices
        if delta.index not in choices:
            choices[delta.index] = self._new_choice(prompt)
        return self._choice(prompt, delta, choices[delta.index], prompt_logprobs)

    def _choice(
        self,
        prompt: int,
        part: ChoiceDelta | serving.Completion,
        state: _ChoiceState,
        prompt_logprobs: Sequence[TokenLogprob] | None,
    ) -> CompletionChoice:
        text = part.text
        logprobs = self._logprobs(part.tokens, state.offsets.advance(part.tokens)) if self._with_logprobs else None
        if self._echo and not state.begun:
            text = self._prompts[prompt].text + text
            if logprobs is not None:
                logprobs = joined(self._echoed_logprobs(prompt, prompt_logprobs or ()), logprobs)
        is_first, state.begun = not state.begun, True
        return CompletionChoice(
            index=prompt * self._n + part.index,
            text=text,
            logprobs=logprobs,
            finish_reason=part.finish_reason and part.finish_reason.value,
            prompt_logprobs=self.prompt_logprobs(part) if isinstance(part, serving.Completion) else UNSET,
            token_ids=self.token_ids(part.token_ids),
            prompt_token_ids=self.token_ids(self._prompts[prompt].token_ids) if is_first else UNSET,
        )

    def _new_choice(self, prompt: int) -> _ChoiceState:
        start = len(self._prompts[prompt].text) if self._echo else 0
        return _ChoiceState(TextOffsets(IncrementalDetokenizer(self._tokenizer, self._skip_special_tokens), start))

    def _echoed_logprobs(self, prompt: int, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        encoded = self._prompts[prompt]
        if encoded.text_span is not None:
            start, end = encoded.text_span
            tokens = tokens[start:end]
        offsets = encoded.offsets
        if offsets is None:
            detokenizer = IncrementalDetokenizer(self._tokenizer, self._skip_special_tokens, starts_text=True)
            offsets = TextOffsets(detokenizer).advance(tokens)
        return self._logprobs(tokens, offsets[: len(tokens)])

    def _logprobs(self, tokens: Sequence[TokenLogprob], offsets: list[int]) -> CompletionLogprobs:
        return completion_logprobs(tokens, offsets, top=self._top, as_ids=self._as_ids)

    @staticmethod
    def _shows(choice: CompletionChoice) -> bool:
        shows_tokens = choice.token_ids or (choice.logprobs is not None and choice.logprobs.tokens)
        return bool(choice.text or choice.finish_reason or shows_tokens)

    def _completion(self, choices: list[CompletionChoice], usage: ChunkUsage) -> Completion:
        head = self.head
        return Completion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=usage,
        )


COMPLETIONS = Endpoint(
    path="/v1/completions",
    name="create_completion",
    summary="Go on with a text",
    description="""Continues one or several prompts, whole or as a stream of chunks.

Fields that nobody knows are named back in `X-Ignored-Params`; `?strict=true` refuses them.""",
    request_body=takes(CompletionBody, _EXAMPLES),
    responses=answers(Completion, Completion),
    schema=CompletionBody,
    read=read_completion,
    id_prefix="cmpl",
    numbers_prompts=True,
)
