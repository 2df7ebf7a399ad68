"""Encoding from the API's side over a real engine in this process: a fake model, and a small one in a process of its
own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from app.contract.config import EngineConfig
from app.contract.frames import EncodeOutput, LoadProgress
from app.contract.request import FinishReason, Pooling
from app.engine.inproc import InprocConnection
from app.engine.loop import MakeRunner
from app.errors import RequestError
from app.runner.parallel import start_runner
from app.serving.connection import EngineConnection
from app.serving.encoding import Encoder
from app.serving.engine_client import EngineClient
from app.serving.supervisor import Supervisor
from app.serving.types import EncodingRequest
from app.telemetry.metrics import Metrics
from tests.fake_encoder import expected_vector, floats
from tests.fakes import FakeRunner, fake_config
from tests.models.tiny_encoder import Reference, served
from tests.serving.rig import ENDPOINT, MODEL, KeepingLedger, until


class Rig:
    """Everything a test may want to look at."""

    def __init__(self, max_num_seqs: int = 8, max_queue: int = 32) -> None:
        self.metrics = Metrics(MODEL)
        self.client = EngineClient(self.metrics)
        self.ledger = KeepingLedger(self.metrics)
        self.encoder = Encoder(self.client, self.ledger, max_num_seqs=max_num_seqs, max_queue=max_queue)

    async def encode(self, *inputs: list[int], **options: object) -> list[EncodeOutput]:
        request = EncodingRequest("request", list(inputs), **options)  # type: ignore[arg-type]
        return await self.encoder.encode(request, endpoint=ENDPOINT)

    def sample(self, name: str, **labels: str) -> float:
        """A metric's present value; 0 if it has none yet."""
        return self.metrics.registry.get_sample_value(name, {"model_name": MODEL, **labels}) or 0.0

    @contextlib.asynccontextmanager
    async def over(self, connection: EngineConnection) -> AsyncIterator[None]:
        """Within it an engine serves; afterwards it holds nothing."""
        serving = asyncio.create_task(self.client.serve(connection))
        try:
            await self.client.wait_ready()
            yield
            await until(lambda: not self.client.stats.num_running + self.client.stats.num_waiting)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def make(runner: FakeRunner) -> MakeRunner:
    def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        return runner

    return make_runner


@contextlib.asynccontextmanager
async def running(runner: FakeRunner | None = None, *, max_queue: int = 32, **config: object) -> AsyncIterator[Rig]:
    rig = Rig(max_queue=max_queue)
    runner = runner or FakeRunner(max_encode_len=100)
    async with rig.over(InprocConnection(fake_config(**config), make(runner))):
        yield rig


async def test_results_come_in_the_order_of_the_inputs() -> None:
    inputs = [[i] * (i % 5 + 1) for i in range(20)]
    async with running(max_num_batched_tokens=16) as rig:
        outputs = await rig.encode(*inputs, pooling=Pooling.CLS, normalize=False)
    assert [floats(output.data) for output in outputs] == [
        expected_vector(tokens, Pooling.CLS, normalize=False) for tokens in inputs
    ]


async def test_tokens_are_counted_once() -> None:
    async with running() as rig:
        await rig.encode([1, 2, 3], [4, 5])
        await until(lambda: rig.client.stats.encode_tokens_total == 5)
    (record,) = rig.ledger.records
    assert (record.usage.prompt_tokens, record.usage.completion_tokens, record.n) == (5, 0, 2)
    assert record.finish_reasons == [FinishReason.STOP] * 2
    assert record.timings is not None
    assert rig.sample("tuili_requests_total", endpoint=ENDPOINT, outcome="ok") == 1
    assert rig.sample("tuili_prompt_tokens_total") == 5
    assert rig.sample("tuili_engine_encode_tokens_total") == 5
    assert rig.sample("tuili_engine_steps_by_kind_total", kind="encode", run="eager") == 1


async def test_refusals_send_nothing() -> None:
    async with running(max_queue=0) as rig:
        for inputs, code in (
            ([[1] * 101], "context_length_exceeded"),
            ([[1], []], "invalid_request"),
            ([[1000]], "invalid_request"),
            ([[1]] * 9, None),
            ([], None),
        ):
            with pytest.raises(RequestError) as refusal:
                await rig.encode(*inputs)
            assert refusal.value.status == 400
            assert code is None or refusal.value.code == code
        with pytest.raises(RequestError, match="no time left"):
            await rig.encode([1], deadline=time.monotonic() - 1)
    assert rig.ledger.records == []
    assert rig.sample("tuili_requests_refused_total", endpoint=ENDPOINT, reason="invalid_request") == 2


async def test_room_is_kept_while_inputs_are_tokenised() -> None:
    async with running(max_queue=0) as rig:
        with rig.encoder.permit("held", endpoint=ENDPOINT, n=7) as permit:
            with pytest.raises(RequestError) as full:
                await rig.encode([1], [2])
            assert (full.value.status, full.value.code) == (429, "overloaded")
            encoding = rig.encoder.submit(permit, EncodingRequest("held", [[3]] * 7), endpoint=ENDPOINT)
        assert len(await encoding.collect()) == 7
        await rig.encode(*([[1]] * 8))


async def test_an_engine_that_is_full_says_so() -> None:
    async with running(FakeRunner(max_encode_len=100, delay=0.02), max_queued_encode_tokens=10) as rig:
        results = await asyncio.gather(*(rig.encode([i] * 90) for i in range(6)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, RequestError)]
    assert 0 < len(refused) < 6
    assert {(error.status, error.code) for error in refused} == {(429, "overloaded")}


async def test_a_caller_that_goes_takes_its_sequences_along() -> None:
    runner = FakeRunner(max_encode_len=100, delay=0.05)
    async with running(runner, max_num_batched_tokens=100) as rig:
        task = asyncio.create_task(rig.encode(*([i] * 100 for i in range(20))))
        await until(lambda: len(runner.batches) > 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: not rig.client.stats.num_running + rig.client.stats.num_waiting)
        assert len(runner.batches) < 10
    (record,) = rig.ledger.records
    assert record.finish_reasons[-1] is FinishReason.ABORT
    assert rig.client.in_flight == 0


async def test_deadlines() -> None:
    async with running(FakeRunner(max_encode_len=100, delay=0.05), max_num_batched_tokens=100) as rig:
        with pytest.raises(RequestError) as late:
            await rig.encode(*([i] * 100 for i in range(20)), deadline=time.monotonic() + 0.1)
        assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
    assert rig.ledger.records[0].error_code == "deadline_exceeded"


async def test_a_batch_that_fails() -> None:
    async with running(FakeRunner(max_encode_len=100, fail_encode=lambda batch: 7 in batch.token_ids)) as rig:
        with pytest.raises(RequestError) as failed:
            await rig.encode([7])
        assert failed.value.status == 500
        (output,) = await rig.encode([8])
        assert floats(output.data) == expected_vector([8])


async def test_an_engine_that_goes_answers_what_is_in_flight() -> None:
    rig = Rig()
    connection = InprocConnection(fake_config(), make(FakeRunner(max_encode_len=100, delay=0.2)))
    serving = asyncio.create_task(rig.client.serve(connection))
    await rig.client.wait_ready()
    task = asyncio.create_task(rig.encode([1]))
    await until(lambda: rig.client.in_flight == 1)
    serving.cancel()
    with pytest.raises(RequestError) as lost:
        await task
    assert (lost.value.status, lost.value.code) == (503, "engine_restarted")
    await asyncio.gather(serving, return_exceptions=True)


SEQUENCES = [[5], list(range(80)), [1, 2, 3], [7] * 33]


def config_of(reference: Reference, directory: Path) -> EngineConfig:
    reference.save(directory)
    return EngineConfig(
        model_dir=str(directory), weights=(str(directory / "model.safetensors"),), dtype="float32", threads=1
    )


def check(outputs: list[EncodeOutput], reference: Reference) -> None:
    for sequence, output in zip(SEQUENCES, outputs, strict=True):
        actual = torch.from_numpy(np.frombuffer(output.data, dtype="<f4").copy())
        assert (actual - reference.encode(sequence)).abs().max() < 1e-5


async def test_an_encoder_in_this_process(tmp_path: Path) -> None:
    reference, rig = Reference(), Rig()
    with served():
        async with rig.over(InprocConnection(config_of(reference, tmp_path / "model"), start_runner)):
            check(await rig.encode(*SEQUENCES), reference)


async def test_an_encoder_in_a_process_of_its_own(tmp_path: Path) -> None:
    reference, rig = Reference(), Rig()
    command = [sys.executable, "-m", "tests.models.tiny_encoder.worker"]
    config = config_of(reference, tmp_path / "model")
    supervisor = Supervisor(rig.client, config, command, metrics=rig.metrics, on_give_up=pytest.fail)
    supervisor.start()
    try:
        ready = await rig.client.wait_ready()
        assert (ready.info.max_encode_len, ready.info.max_model_len, ready.max_kv_tokens) == (80, 0, 0)
        check(await rig.encode(*SEQUENCES), reference)
    finally:
        await supervisor.stop()
