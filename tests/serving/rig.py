"""The whole text side over a real engine in this process, with a fake runner and the byte tokenizer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.contract.request import SamplingParams
from app.engine.inproc import InprocConnection
from app.serving.engine_client import EngineClient
from app.serving.generation import Generation
from app.serving.generator import Generator
from app.serving.ledger import Ledger
from app.serving.types import ChoiceDelta, GenerationRequest, RequestRecord
from app.telemetry.aliases import ENGINE
from app.telemetry.metrics import Metrics
from app.text.tokenizer import Tokenizer
from tests.byte_tokenizer import EOS_ID, VOCAB_SIZE, build_byte_tokenizer
from tests.fakes import FakeRunner, NextToken

MODEL = "fake-model"
ENDPOINT = "/v1/completions"
WAIT_SECONDS = 20.0


def byte_tokenizer() -> Tokenizer:
    """The tests' tokenizer: ids below 256 are bytes."""
    return Tokenizer(build_byte_tokenizer().to_str(), eos_token="</s>")


def recite(text: str | bytes, *, prompt_len: int) -> NextToken:
    """A "model" that answers every prompt of ``prompt_len`` tokens with ``text``, then with EOS for ever."""
    script = text.encode() if isinstance(text, str) else text

    def next_token(context: Sequence[int]) -> int:
        place = len(context) - prompt_len
        return script[place] if place < len(script) else EOS_ID

    return next_token


def repeat(text: str) -> NextToken:
    """A "model" that says ``text`` again and again, to any prompt, by the number of tokens before."""
    script = text.encode()
    return lambda context: script[len(context) % len(script)]


class KeepingLedger(Ledger):
    """A ledger that also keeps what was written."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self.records: list[RequestRecord] = []

    def write(self, record: RequestRecord, seconds: float) -> None:
        """Keeps the record too."""
        self.records.append(record)
        super().write(record, seconds)


@dataclass
class Rig:
    """Everything a test may want to look at."""

    client: EngineClient
    generator: Generator
    metrics: Metrics
    ledger: KeepingLedger
    runner: FakeRunner | None = None

    async def submit(
        self,
        prompt: str | list[int],
        *,
        n: int = 1,
        request_id: str = "request",
        seconds: float | None = None,
        constraint: str = "",
        **params: Any,
    ) -> Generation:
        """Submits a prompt; ``params`` are those of :class:`SamplingParams`."""
        request = GenerationRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt.encode()) if isinstance(prompt, str) else prompt,
            params=SamplingParams(**params),
            n=n,
            deadline=None if seconds is None else time.monotonic() + seconds,
            constraint=constraint,
        )
        return await self.generator.start(request, endpoint=ENDPOINT, stream=True)

    async def settled(self) -> None:
        """Waits until the engine holds nothing any more."""
        await until(lambda: self.client.stats.blocks_used == 0 and not self.client.stats.num_running)

    def sample(self, name: str, **labels: str) -> float:
        """A metric's present value; 0 if it has none yet."""
        return sample_value(self.metrics, name, **labels) or 0.0


def sample_value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of one series of the model; None if there is none."""
    engine = {"engine": ENGINE} if name.startswith("vllm:") else {}
    return metrics.registry.get_sample_value(name, {"model_name": MODEL, **engine, **labels})


def make_rig(
    *,
    max_num_seqs: int = 8,
    max_queue: int = 32,
    max_backlog: int = 4096,
    on_progress: Callable[[LoadProgress], None] | None = None,
) -> Rig:
    """A text side without an engine."""
    metrics = Metrics(MODEL)
    client = EngineClient(metrics, max_backlog=max_backlog, on_progress=on_progress)
    ledger = KeepingLedger(metrics)
    generator = Generator(
        client,
        byte_tokenizer(),
        ledger,
        max_num_seqs=max_num_seqs,
        max_queue=max_queue,
    )
    return Rig(client, generator, metrics, ledger)


@contextlib.asynccontextmanager
async def running(
    next_token: NextToken | None = None,
    *,
    delay: float = 0.0,
    num_blocks: int = 64,
    max_model_len: int = 512,
    max_num_seqs: int = 8,
    max_queue: int = 32,
    max_backlog: int = 4096,
    kind: type[FakeRunner] = FakeRunner,
    max_adapters: int = 0,
    draft: str = "none",
) -> AsyncIterator[Rig]:
    """A text side over a live engine; afterwards the engine must hold nothing."""
    rig = make_rig(max_num_seqs=max_num_seqs, max_queue=max_queue, max_backlog=max_backlog)
    runner = kind(
        num_blocks=num_blocks,
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
        next_token=next_token or repeat("héllo wörld, 你好! "),
        delay=delay,
    )
    rig.runner = runner

    def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        progress(LoadProgress(phase="weights", done=1, total=1))
        return runner

    config = EngineConfig(
        model_dir="fake",
        max_num_seqs=max_num_seqs,
        eos_token_ids=(EOS_ID,),
        integrity_checks=True,
        max_adapters=max_adapters,
        draft=draft,
    )
    serving = asyncio.create_task(rig.client.serve(InprocConnection(config, make_runner)))
    try:
        await rig.client.wait_ready()
        yield rig
        await rig.settled()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another task or process brings about."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - the condition is another process's, or another thread's
            await asyncio.sleep(0.002)


async def read(generation: Generation) -> list[ChoiceDelta]:
    """All deltas of a generation."""
    async with generation:
        return [delta async for delta in generation]
