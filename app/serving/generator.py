"""Where a model's requests begin: a permit, then one :class:`Generation` for each prompt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from app.contract.request import DEFAULT_SAMPLING
from app.serving.admission import Admission, Permit
from app.serving.choice import Choice, control_stops
from app.serving.engine_client import EngineClient
from app.serving.generation import Generation
from app.serving.ledger import Ledger
from app.serving.types import GenerationRequest
from app.text.chat_template import ChatTemplate
from app.text.grammars.checker import GrammarChecker
from app.text.infill import Infill
from app.text.parsers.format import ModelFacts
from app.text.parsers.formats import AUTO, ReplyFormat, find_format
from app.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from app.store import ModelFiles

_DEFAULT_PARAMS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Generator:
    """The text side of the engine: one for each served model.

    Args:
        generation_config: the model's ``generation_config.json``, for :attr:`default_params`.
        default_sampling: these, if that recommends none.
        max_num_seqs, max_queue: sequences that run, and that may wait, at once.
    """

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        ledger: Ledger,
        *,
        chat_template: ChatTemplate | None = None,
        reply_format: ReplyFormat | None = None,
        infill: Infill | None = None,
        generation_config: Mapping[str, Any] | None = None,
        default_sampling: Mapping[str, float] | None = None,
        max_num_seqs: int,
        max_queue: int,
    ) -> None:
        self.client = client
        client.vocabulary.source = tokenizer.vocabulary
        self.tokenizer = tokenizer
        self.ledger = ledger
        self.chat_template = chat_template or ChatTemplate(None)
        self.reply_format = reply_format or format_of(self.chat_template, tokenizer)
        """How the model thinks and calls tools."""
        self.infill = infill
        """How the model is asked to fill in the middle; None if it was not trained to."""
        recommended = sampling_defaults(generation_config or {})
        self.has_recommendation = bool(recommended)
        """Whether the model's makers recommend how to sample."""
        self.default_params = recommended or dict(default_sampling or {})
        """Fields of :class:`SamplingParams` that they recommend, or the server's own; a request's own win."""
        self.capacity = max_num_seqs + max_queue
        """Sequences that are admitted at once."""
        self.grammars = GrammarChecker()
        """Tries grammars that requests bring, before the engine sees them."""
        self._admission = Admission(client, max_num_seqs=max_num_seqs, max_queue=max_queue)

    @classmethod
    def for_model(
        cls,
        files: ModelFiles,
        client: EngineClient,
        ledger: Ledger,
        *,
        max_num_seqs: int,
        max_queue: int,
        chat_template: str | None = None,
        tool_format: str = AUTO,
        reasoning_format: str = AUTO,
        default_sampling: Mapping[str, float] = DEFAULT_SAMPLING,
    ) -> Self:
        """A generator with the tokenizer, templates and defaults that came with a model.

        Args:
            chat_template: name of the template that is taken where a request names none.
            tool_format, reasoning_format: names of the formats of tool calls and of thought, or ``auto``.
            default_sampling: how to sample by default if the model recommends nothing.

        Raises:
            TokenizerError: the tokenizer cannot be used.
            ValueError: the model has no template of that name, or there is no such format.
        """
        tokenizer = Tokenizer.load(
            files.tokenizer_file,
            add_bos=files.add_bos,
            bos_token=files.bos_token,
            eos_token=files.eos_token,
            pad_token=files.pad_token,
        )
        templates = ChatTemplate(
            files.chat_template,
            special_tokens=files.special_tokens,
            named=files.chat_templates,
            preferred=chat_template,
        )
        templates.prepare(tokenizer)
        return cls(
            client,
            tokenizer,
            ledger,
            chat_template=templates,
            reply_format=format_of(templates, tokenizer, tool_format, reasoning_format),
            infill=Infill.find(tokenizer, files.special_tokens),
            generation_config=files.generation_config,
            default_sampling=default_sampling,
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
        )

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together. Raises :class:`RequestError` 503 before the first start."""
        ready = self.client.ready or self.client.check_available()
        return min(ready.info.max_model_len, ready.max_kv_tokens)

    @property
    def model_context(self) -> int:
        """Most tokens of prompt and answer together, if the KV cache held any number. Raises likewise."""
        return (self.client.ready or self.client.check_available()).info.max_model_len

    @property
    def vocab_size(self) -> int:
        """Ids that the model's logits have. Raises :class:`RequestError` 503 before the first start."""
        return (self.client.ready or self.client.check_available()).info.vocab_size

    def remaining_tokens(self, prompt_len: int) -> int:
        """The largest ``max_tokens`` that fits behind a prompt; 0 when not even the prompt does."""
        return max(0, self.max_model_len - prompt_len)

    @contextlib.contextmanager
    def permit(self, request_id: str, *, endpoint: str, n: int = 1) -> Iterator[Permit]:
        """Room for a request of ``n`` sequences, which it holds while its prompts are rendered and tokenised.

        However many long prompts come at once, no more are worked on than can be admitted, and none of those is refused
        for lack of room. What :meth:`submit` did not use is given back when the block is left; a request that ends
        by then is written in the ledger as refused.

        Args:
            endpoint: the route's template, for metrics and log.

        Raises:
            RequestError: 503 (no engine), 429 (full), 400 (more than ever fits).
        """
        with self.ledger.refusing(request_id, endpoint), self._admission.permit(n) as permit:
            yield permit

    def submit(
        self, permit: Permit, requests: Sequence[GenerationRequest], *, endpoint: str, stream: bool
    ) -> list[Generation]:
        """Sends the prompts of a client's request to the engine: all of them, or none.

        Room is not asked for again: the permit has it, even when the server has begun to drain since.

        Args:
            endpoint: the route's template, for metrics and log.
            stream: whether the client reads along, for the log.

        Raises:
            RequestError: 503 (no engine any more), 400 (cannot be served), 504 (no time left).
            ValueError: the permit is for fewer sequences, or was used before.
        """
        arrival = time.monotonic()
        sequences = [
            self._admission.sequences(request, arrival, tuple(control_stops(request.params, self.tokenizer)))
            for request in requests
        ]
        choices = [
            [
                Choice(index, request.params, self.tokenizer, request.new_parser and request.new_parser())
                for index in range(request.n)
            ]
            for request in requests
        ]
        self.client.check_running()
        permit.use(sum(map(len, sequences)))
        return [
            Generation(
                request,
                each,
                request_choices,
                client=self.client,
                mailbox=self.client.submit(each),
                tokenizer=self.tokenizer,
                entry=self.ledger.open(request, endpoint=endpoint, stream=stream, arrival=arrival),
            )
            for request, each, request_choices in zip(requests, sequences, choices, strict=True)
        ]

    async def start(self, request: GenerationRequest, *, endpoint: str, stream: bool) -> Generation:
        """Asks for room and submits one prompt that is encoded already. Raises as :meth:`permit` and :meth:`submit`."""
        with self.permit(request.request_id, endpoint=endpoint, n=request.n) as permit:
            (generation,) = self.submit(permit, [request], endpoint=endpoint, stream=stream)
        return generation


def format_of(
    templates: ChatTemplate, tokenizer: Tokenizer, tool_format: str = AUTO, reasoning_format: str = AUTO
) -> ReplyFormat:
    """How a model's replies are made, by its template and tokenizer. Raises ValueError for names of no format."""
    facts = ModelFacts(
        template=templates.tools_source,
        reads_tools=templates.reads("tools"),
        has_token=lambda text: tokenizer.token_id(text) is not None,
    )
    return find_format(facts, tool_format=tool_format, reasoning_format=reasoning_format)


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`SamplingParams` that a model's ``generation_config.json`` sets.

    ``do_sample: false`` without a temperature is the library default of those files, not a wish for greedy answers.
    """
    return {name: value for name in _DEFAULT_PARAMS if (value := generation_config.get(name)) is not None}
