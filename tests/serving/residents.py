"""Models that come and go, for tests: real engines with fake runners in this process, and a clock that tests set."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.engine.inproc import InprocConnection
from app.serving.engine_client import EngineClient
from app.serving.generator import Generator
from app.serving.ledger import Ledger
from app.serving.memory import PROCESS_BYTES, FixedBudget
from app.serving.residency import Residency
from app.serving.resident import Resident
from app.serving.served import Served, ServedModels
from app.store import ProgressReporter, StoreError
from app.telemetry.metrics import Metrics
from app.telemetry.residents import ResidentMetrics
from app.text.chat_template import ChatTemplate
from tests.byte_tokenizer import CHATML_TEMPLATE, EOS_ID, VOCAB_SIZE
from tests.fakes import FakeRunner
from tests.serving.rig import byte_tokenizer, repeat

KEEP_ALIVE = 60.0
SIZE = PROCESS_BYTES + 512
"""Bytes of a model: a process, and 64 blocks of 8 bytes."""


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class InprocEngine:
    """What a supervisor is for an engine process, for an engine in a thread of this one."""

    pid: int | None = None

    def __init__(self, source: FakeSource, on_give_up: Callable[[str], None]) -> None:
        self._source = source
        self._on_give_up = on_give_up
        self._serving: asyncio.Task[object] | None = None

    def start(self) -> None:
        config = EngineConfig(model_dir="fake", max_num_seqs=8, eos_token_ids=(EOS_ID,), integrity_checks=True)
        connection = InprocConnection(config, self._source.make_runner)
        self._serving = asyncio.create_task(self._serve(connection))

    async def _serve(self, connection: InprocConnection) -> None:
        reason = await self._source.client.serve(connection)
        self.fail(reason or "it is gone")

    def fail(self, reason: str) -> None:
        """What a supervisor does that gives up."""
        self._source.client.fail(reason)
        self._on_give_up(reason)

    async def stop(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})

    def stall_limit(self) -> float:
        return 600.0


@dataclass
class FakeSource:
    """A model without files. Its fields may be changed at any time."""

    says: str
    client: EngineClient
    metrics: Metrics
    size: int = SIZE
    guessed: int = 0
    """Size that its files suggest; 0: the true one."""
    measured: int = 0
    """Times that somebody asked for the true one."""
    absent: bool = False
    takes_the_rest: bool = False
    broken: Exception | None = None
    """What its load fails with."""
    starts: int = 0
    delay: float = 0.0
    may_load: threading.Event = field(default_factory=threading.Event)
    may_fetch: threading.Event = field(default_factory=threading.Event)
    engines: list[InprocEngine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_load.set()
        self.may_fetch.set()

    def is_here(self) -> bool:
        return not self.absent

    def fetch(self, progress: ProgressReporter) -> None:
        if isinstance(self.broken, StoreError):
            raise self.broken
        if self.absent:
            with progress.task("Downloading it", 100) as advance:
                advance(40)
                self.may_fetch.wait(20)
            self.absent = False

    def guess(self) -> int:
        return self.guessed or self.size

    def needs(self) -> int:
        self.measured += 1
        return self.size

    def text_side(self) -> Generator:
        return Generator(
            self.client,
            byte_tokenizer(),
            Ledger(self.metrics),
            chat_template=ChatTemplate(CHATML_TEMPLATE),
            max_num_seqs=8,
            max_queue=32,
        )

    def engine(self, on_give_up: Callable[[str], None]) -> InprocEngine:
        self.starts += 1
        self.engines.append(InprocEngine(self, on_give_up))
        return self.engines[-1]

    def make_runner(self, config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        progress(LoadProgress(phase="weights", done=1, total=4))
        self.may_load.wait(20)
        if self.broken is not None:
            raise self.broken
        return FakeRunner(vocab_size=VOCAB_SIZE, next_token=repeat(self.says), delay=self.delay)


@dataclass
class House:
    """Several models over one budget."""

    clock: Clock
    residency: Residency
    models: ServedModels
    metrics: Metrics
    sources: list[FakeSource]

    @property
    def residents(self) -> list[Resident]:
        return list(self.residency)

    @property
    def states(self) -> str:
        return " ".join(resident.life.state for resident in self.residency)


@contextlib.asynccontextmanager
async def house(
    *names: str, room: int = 9, keep_alive: float = KEEP_ALIVE, max_waiting: int = 8, patience: float = 1e6
) -> AsyncIterator[House]:
    """Models that say their names again and again, ``room`` of which fit the memory."""
    clock = Clock()
    residency = Residency(FixedBudget(room * SIZE), clock=clock, patience=patience)
    residency.opened.set()
    served, sources = [], []
    first: Metrics | None = None
    for name in names:
        metrics = Metrics(name, beside=first)
        first = first or metrics
        client = EngineClient(metrics)
        source = FakeSource(name, client, metrics)
        resident = Resident(
            name,
            source,
            client,
            residency,
            ResidentMetrics(metrics),
            keep_alive=keep_alive,
            max_waiting=max_waiting,
        )
        residency.add(resident)
        sources.append(source)
        served.append(Served((name,), None, client, client.progress_age, resident.life.stall_limit, resident=resident))
    assert first is not None
    try:
        yield House(clock, residency, ServedModels(served, residency=residency), first, sources)
    finally:
        for source in sources:
            source.may_load.set()
            source.may_fetch.set()
        await residency.stop()
