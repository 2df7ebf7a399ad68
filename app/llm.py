"""The engine inside one's own program: prompts in, completions out, no server.

>>> from app import LLM, SamplingParams
>>> with LLM("smollm2-135m") as llm:  # doctest: +SKIP
...     print(llm.generate("The capital of France is", SamplingParams(temperature=0))[0].text)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import msgspec

from app.contract.config import EngineConfig
from app.contract.request import SamplingParams
from app.engine.inproc import InprocConnection
from app.engine.loop import MakeRunner
from app.serving.engine_client import EngineClient
from app.serving.generation import Completion, Generation
from app.serving.generator import Generator
from app.serving.ledger import Ledger
from app.serving.types import ChoiceDelta, GenerationRequest
from app.store import ModelFiles, SilentProgress, Store, pull, resolve
from app.telemetry.metrics import Metrics

T = TypeVar("T")
Prompt = str | list[int]
_ENDPOINT = "offline"
_UNBOUNDED = 1 << 40


class EngineOptions(TypedDict, total=False):
    """Fields of :class:`EngineConfig` that a caller may set; its defaults hold for the rest, ``auto`` for formats."""

    via: str | None
    load_format: str
    device: str
    dtype: str
    quantization: str
    kv_cache_dtype: str
    kernels: str
    block_size: int
    kv_cache_memory: int
    num_blocks: int | None
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_logit_rows: int
    enable_prefix_caching: bool
    prefix_cache_ram: int
    prefix_cache_dir: str
    prefix_cache_disk: int
    pipeline_depth: int
    draft: str
    max_draft_tokens: int
    draft_ngram: int
    tensor_parallel_size: int
    threads: int
    seed: int
    integrity_checks: bool


class LLM:
    """A model, loaded and ready.

    Safe to call from several threads; their requests are batched together. The engine runs in a thread of this
    process until :meth:`close`, or the end of the ``with`` block.

    Args:
        model: a built-in name, a directory, a ``.gguf`` file or a hub id; fetched if it is not there yet. Or files
            that were fetched before.
        home: directory of pulled models; the platform's cache when absent.
        make_runner: another way to make the engine's runner.
        options: see :class:`EngineOptions`.

    Raises:
        StoreError: there is no such model.
        EngineFailedError: the engine could not load it; the message says why.
    """

    def __init__(
        self,
        model: str | ModelFiles = "smollm2-135m",
        *,
        home: Path | None = None,
        make_runner: MakeRunner | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        files = model if isinstance(model, ModelFiles) else _find(model, Store(home), options)
        formats: EngineOptions = {"dtype": "auto", "quantization": "auto"}
        self._config = EngineConfig(
            model_dir=str(files.directory),
            weights=tuple(str(path) for path in files.weights),
            eos_token_ids=files.eos_token_ids,
            packed_cache=str(Store(home).packed),
            **(formats | options),
        )
        self._make_runner = make_runner or _model_runner()
        metrics = Metrics(files.name)
        self._client = EngineClient(metrics, max_backlog=_UNBOUNDED)
        self._generator = Generator.for_model(
            files,
            self._client,
            Ledger(metrics, log_requests=False),
            max_num_seqs=self._config.max_num_seqs,
            max_queue=_UNBOUNDED,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        self._thread.start()
        self._serving = self._run(self._start())
        try:
            self._run(self._client.wait_ready())
        except BaseException:
            self.close()
            raise

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._generator.max_model_len

    def generate(
        self,
        prompts: str | Sequence[str] | list[int] | Sequence[list[int]],
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        parse_special: bool = True,
        constraint: str = "",
    ) -> list[Completion]:
        """Continues one prompt or many, together in one batch.

        Args:
            prompts: text or token ids, one prompt or several.
            params: how to sample; when absent, as the model's own defaults say, and 16 tokens.
            n: choices for each prompt.
            parse_special: take control tokens that a text spells for what they say. False keeps pasted text from
                posing as a turn of its own.
            constraint: a grammar that all of each answer has to match, as llguidance reads it.

        Returns:
            ``n`` completions a prompt, in the order of the prompts.

        Raises:
            RequestError: a prompt cannot be served, or the engine gave up on it. The others are aborted.
        """
        inputs = _as_list(prompts)
        params = params or self._default_params()
        return self._run(self._generate(inputs, params, n, parse_special=parse_special, constraint=constraint))

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None) -> Completion:
        """The next turn of a conversation of OpenAI-style messages.

        Without ``params`` the answer may be as long as the context allows. Raises as :meth:`generate`.
        """
        prompt = self._generator.chat_template.encode(messages, self._generator.tokenizer)
        if params is None:
            max_tokens = max(1, self._generator.remaining_tokens(len(prompt)))
            params = msgspec.structs.replace(self._default_params(), max_tokens=max_tokens)
        return self._run(self._generate([prompt], params, 1))[0]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, parse_special: bool = True
    ) -> Iterator[str]:
        """Continues one prompt and yields text as it is made. Leaving the loop early aborts the request."""
        token_ids = self._run(self._encode(prompt, parse_special=parse_special))
        generation = self._run(self._submit(token_ids, params or self._default_params(), 1, "stream", stream=True))
        try:
            while (delta := self._run(_next(generation))) is not None:
                if delta.text:
                    yield delta.text
        finally:
            if not self._loop.is_closed():  # its end has ended the request too
                self._run(generation.aclose())

    def close(self) -> None:
        """Ends the engine and frees what it holds. Closing again does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            coroutine.close()
            raise RuntimeError("this LLM was closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: the request must not go on
            raise

    async def _start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        reason = await self._client.serve(InprocConnection(self._config, self._make_runner))
        self._client.fail(reason or "the engine was closed")

    async def _stop(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()

    async def _encode(self, prompt: Prompt, *, parse_special: bool) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        return await self._generator.tokenizer.encode_async(prompt, parse_special=parse_special)

    async def _submit(
        self,
        token_ids: list[int],
        params: SamplingParams,
        n: int,
        request_id: str,
        *,
        stream: bool = False,
        constraint: str = "",
    ) -> Generation:
        request = GenerationRequest(
            request_id=request_id, prompt_token_ids=token_ids, params=params, n=n, constraint=constraint
        )
        return await self._generator.start(request, endpoint=_ENDPOINT, stream=stream)

    async def _complete(
        self, prompt: Prompt, params: SamplingParams, n: int, request_id: str, *, parse_special: bool, constraint: str
    ) -> list[Completion]:
        token_ids = await self._encode(prompt, parse_special=parse_special)
        return await (await self._submit(token_ids, params, n, request_id, constraint=constraint)).collect()

    async def _generate(
        self,
        prompts: list[Prompt],
        params: SamplingParams,
        n: int,
        *,
        parse_special: bool = True,
        constraint: str = "",
    ) -> list[Completion]:
        tasks = [
            asyncio.create_task(
                self._complete(
                    prompt, params, n, f"generate-{index}", parse_special=parse_special, constraint=constraint
                )
            )
            for index, prompt in enumerate(prompts)
        ]
        try:
            return [completion for completions in await asyncio.gather(*tasks) for completion in completions]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _default_params(self) -> SamplingParams:
        return SamplingParams(**self._generator.default_params)


async def _next(generation: Generation) -> ChoiceDelta | None:
    return await anext(generation, None)


def _as_list(prompts: str | Sequence[str] | list[int] | Sequence[list[int]]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [[int(item) for item in prompts]]  # type: ignore[arg-type]  # told apart at run time
    return [item if isinstance(item, str) else list(item) for item in prompts]  # type: ignore[arg-type]


def _find(model: str, store: Store, options: EngineOptions) -> ModelFiles:
    via = options.get("via")
    if options.get("load_format") == "dummy":  # random weights: only the model's description is needed
        return resolve(model, store, need_weights=False, via=via)
    return pull(model, store, SilentProgress(), via=via)


def _model_runner() -> MakeRunner:
    # Here, so that importing this module needs no torch.
    from app.runner.parallel import start_runner

    return start_runner
