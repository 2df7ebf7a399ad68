"""A real engine process: started, killed, started again, given up, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.contract.request import FinishReason
from app.errors import RequestError
from app.serving.engine_client import EngineFailedError, EngineState
from app.serving.supervisor import LONGEST_STEP, FailureCount, RestartPolicy, Supervisor
from tests.byte_tokenizer import EOS_ID
from tests.serving.rig import ENDPOINT, Rig, make_rig, read, until

SCRIPT = Path(__file__).with_name("fake_engine.py")
QUICK = RestartPolicy(first_backoff=0.01, exit_grace=1.0)
IMPATIENT = RestartPolicy(first_backoff=0.01, exit_grace=1.0, stall_timeout=1.0)


@dataclass
class Supervised:
    """A supervisor and what it said."""

    supervisor: Supervisor
    rig: Rig
    given_up: list[str] = field(default_factory=list)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Signals the engine process and returns its pid."""
        pid = self.supervisor.pid
        assert pid is not None
        os.kill(pid, number)
        return pid


@contextlib.asynccontextmanager
async def supervised(
    mode: str = "ok", policy: RestartPolicy = QUICK, on_progress: Callable[[LoadProgress], None] | None = None
) -> AsyncIterator[Supervised]:
    """A text side with an engine process under a supervisor; no process is left over."""
    rig = make_rig(on_progress=on_progress)
    given_up: list[str] = []
    supervisor = Supervisor(
        rig.client,
        EngineConfig(model_dir="fake", eos_token_ids=(EOS_ID,), max_num_seqs=8, integrity_checks=True),
        [sys.executable, str(SCRIPT), mode],
        metrics=rig.metrics,
        on_give_up=given_up.append,
        policy=policy,
    )
    before = set(psutil.Process().children())
    supervisor.start()
    try:
        yield Supervised(supervisor, rig, given_up)
    finally:
        await supervisor.stop()
        assert supervisor.pid is None
        assert set(psutil.Process().children()) == before


async def test_an_engine_process_answers() -> None:
    async with supervised() as it:
        ready = await it.rig.client.wait_ready()
        assert ready.pid == it.supervisor.pid != os.getpid()
        (completion,) = await (await it.rig.submit("p", max_tokens=34)).collect()
        assert len(completion.text) == 34
        assert "once upon a time" in completion.text
        assert it.rig.client.progress_age() == 0.0
    assert it.given_up == []


async def test_progress_of_the_load_is_passed_on() -> None:
    seen: list[LoadProgress] = []
    async with supervised(on_progress=seen.append) as it:
        await it.rig.client.wait_ready()
    assert [(progress.phase, progress.done, progress.total) for progress in seen] == [("weights", 1, 2)]


async def test_a_killed_engine_is_replaced_and_its_requests_are_told() -> None:
    async with supervised() as it:
        rig = it.rig
        await rig.client.wait_ready()
        await (await rig.submit("p", max_tokens=20)).collect()
        generations = [await rig.submit("p", max_tokens=400, n=2, request_id=f"r{index}") for index in range(3)]
        readers = [asyncio.create_task(read(generation)) for generation in generations]
        await until(lambda: all(generation.generated_tokens > 4 for generation in generations))
        before = rig.sample("tuili_engine_generation_tokens_total")
        old_pid = it.kill()
        for outcome in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(outcome, RequestError)
            assert (outcome.status, outcome.code) == (503, "engine_restarted")
            assert outcome.retry_after is not None
        assert rig.client.in_flight == 0
        assert rig.client.readiness()[0] is False
        with pytest.raises(RequestError) as refused:
            await rig.submit("p")
        assert refused.value.status == 503

        await rig.client.wait_ready()
        assert it.supervisor.pid not in (None, old_pid)
        (completion,) = await (await rig.submit("p", max_tokens=10)).collect()
        assert completion.finish_reason is FinishReason.LENGTH
        assert rig.sample("tuili_engine_generation_tokens_total") >= before + 10
        assert rig.sample("tuili_engine_restarts_total") == 1
        assert rig.sample("tuili_requests_total", endpoint=ENDPOINT, outcome="engine_restarted") == 3
        assert rig.sample("tuili_requests_total", endpoint=ENDPOINT, outcome="ok") == 2
        assert sum(record.generated_tokens for record in rig.ledger.records) == rig.sample(
            "tuili_generated_tokens_total"
        )
    assert it.given_up == []


async def test_three_failures_are_enough() -> None:
    async with supervised() as it:
        for _ in range(3):
            await it.rig.client.wait_ready()
            it.kill()
            await until(lambda: it.rig.client.state is not EngineState.READY)
        await until(lambda: bool(it.given_up))
        assert it.rig.client.state is EngineState.DEAD
        assert it.rig.sample("tuili_engine_restarts_total") == 2
        assert it.rig.sample("tuili_engine_state", state="dead") == 1
        with pytest.raises(RequestError) as refused:
            await it.rig.submit("p")
        assert refused.value.status == 503
    assert it.given_up == [
        "the engine failed 3 times within 5 minutes; last: the engine process was ended by SIGKILL (out of memory?)"
    ]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("refuse", "model.safetensors: tensor lm_head.weight is missing"),
        ("vanish", "the engine process exited with code 3"),
    ],
)
async def test_a_failure_of_the_first_start_is_final(mode: str, message: str) -> None:
    async with supervised(mode) as it:
        with pytest.raises(EngineFailedError, match=f"^{message}$"):
            await it.rig.client.wait_ready()
        await until(lambda: bool(it.given_up))
    assert it.given_up == [message]


async def test_a_command_that_does_not_exist_is_final() -> None:
    rig = make_rig()
    given_up: list[str] = []
    supervisor = Supervisor(
        rig.client,
        EngineConfig(model_dir="fake"),
        ["/nonexistent/engine"],
        metrics=rig.metrics,
        on_give_up=given_up.append,
    )
    supervisor.start()
    with pytest.raises(EngineFailedError, match="could not be started"):
        await rig.client.wait_ready()
    await supervisor.stop()
    assert len(given_up) == 1


@pytest.mark.parametrize("mode", ["hang", "stubborn"])
async def test_a_loading_engine_can_be_stopped(mode: str) -> None:
    async with supervised(mode, RestartPolicy(exit_grace=0.2)) as it:
        await until(lambda: it.rig.client.progress is not None)
    assert it.given_up == []


async def test_a_frozen_engine_shows_no_progress_and_is_killed_in_the_end() -> None:
    async with supervised(policy=RestartPolicy(exit_grace=0.2)) as it:
        await it.rig.client.wait_ready()
        generation = await it.rig.submit("p", max_tokens=450)
        reader = asyncio.create_task(read(generation))
        await until(lambda: generation.generated_tokens > 3)
        it.kill(signal.SIGSTOP)
        await until(lambda: it.rig.client.progress_age() > 0.2)
    with pytest.raises(RequestError) as raised:
        await reader
    assert raised.value.code == "engine_restarted"


async def test_an_engine_that_is_stopped_at_work_is_replaced() -> None:
    async with supervised(policy=IMPATIENT) as it:
        rig = it.rig
        await rig.client.wait_ready()
        generation = await rig.submit("p", max_tokens=450)
        reader = asyncio.create_task(read(generation))
        await until(lambda: generation.generated_tokens > 3)
        stopped = psutil.Process(it.kill(signal.SIGSTOP))
        with pytest.raises(RequestError) as raised:
            await reader
        assert (raised.value.status, raised.value.code) == (503, "engine_restarted")
        await rig.client.wait_ready()
        assert not stopped.is_running()
        (completion,) = await (await rig.submit("p", max_tokens=10)).collect()
        assert completion.finish_reason is FinishReason.LENGTH
        assert rig.sample("tuili_engine_stalls_total") == rig.sample("tuili_engine_restarts_total") == 1
    assert it.given_up == []


async def test_an_engine_that_is_stopped_while_idle_is_found_by_the_next_request() -> None:
    async with supervised(policy=IMPATIENT) as it:
        await it.rig.client.wait_ready()
        await (await it.rig.submit("p", max_tokens=5)).collect()
        pid = it.kill(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        assert it.supervisor.pid == pid, "nothing was asked of it"
        with pytest.raises(RequestError) as raised:
            await (await it.rig.submit("p", max_tokens=5)).collect()
        assert raised.value.code == "engine_restarted"
        await it.rig.client.wait_ready()
        assert it.supervisor.pid != pid


async def test_clients_that_leave_do_not_hide_that_the_engine_is_stopped() -> None:
    async with supervised(policy=IMPATIENT) as it:
        await it.rig.client.wait_ready()
        pid = it.kill(signal.SIGSTOP)

        async def ask_and_leave() -> None:
            while it.supervisor.pid == pid:
                with contextlib.suppress(RequestError):
                    generation = await it.rig.submit("p", max_tokens=5)
                    await asyncio.sleep(0.1)
                    await generation.aclose()

        await asyncio.wait_for(ask_and_leave(), 20)
        await it.rig.client.wait_ready()
        (completion,) = await (await it.rig.submit("p", max_tokens=5)).collect()
        assert completion.finish_reason is FinishReason.LENGTH


async def test_stalls_are_failures() -> None:
    async with supervised(policy=IMPATIENT) as it:
        for _ in range(3):
            await it.rig.client.wait_ready()
            it.kill(signal.SIGSTOP)
            with pytest.raises(RequestError):
                await (await it.rig.submit("p", max_tokens=5)).collect()
        await until(lambda: bool(it.given_up))
    (reason,) = it.given_up
    assert reason.startswith("the engine failed 3 times within 5 minutes; last: the engine showed no progress for 1")


async def test_how_long_a_step_may_take_follows_from_the_pace_of_those_before() -> None:
    async with supervised() as it:
        assert it.supervisor.stall_limit() == LONGEST_STEP, "nothing is known yet"
        await it.rig.client.wait_ready()
        await (await it.rig.submit("p", max_tokens=5)).collect()
        assert it.supervisor.stall_limit() == 60, "its steps take milliseconds"
        it.rig.client.slowest_token = 0.05
        assert 60 < it.supervisor.stall_limit() < LONGEST_STEP
        it.rig.client.slowest_token = 5.0
        assert it.supervisor.stall_limit() == LONGEST_STEP
    async with supervised(policy=IMPATIENT) as it:
        assert it.supervisor.stall_limit() == 1.0, "as it was told"


async def test_a_load_that_stalls_is_ended() -> None:
    policy = RestartPolicy(exit_grace=0.5, load_stall_timeout=1.0)
    async with supervised("stubborn", policy) as it:
        with pytest.raises(EngineFailedError, match="while it loaded and was killed"):
            await it.rig.client.wait_ready()
        await until(lambda: bool(it.given_up))


async def test_time_in_which_nothing_ran_is_no_stall() -> None:
    """As when a machine is suspended, or a container frozen: both processes stand still."""
    limit = 2.0
    policy = RestartPolicy(stall_timeout=limit)
    async with supervised(policy=policy) as it:
        await it.rig.client.wait_ready()
        generation = await it.rig.submit("p", max_tokens=450)
        reader = asyncio.create_task(read(generation))
        await until(lambda: generation.generated_tokens > 3)
        it.kill(signal.SIGSTOP)
        time.sleep(1.25 * limit)  # noqa: ASYNC251 - this process is to stand still
        assert it.rig.client.progress_age() > limit
        await asyncio.sleep(0.1 * limit)  # this process is the first to go on
        it.kill(signal.SIGCONT)
        assert sum(len(delta.token_ids) for delta in await reader) == 450
        assert it.rig.sample("tuili_engine_stalls_total") == 0


async def test_an_idle_engine_ages_not() -> None:
    async with supervised() as it:
        await it.rig.client.wait_ready()
        await asyncio.sleep(0.3)
        generation = await it.rig.submit("p", max_tokens=5)
        assert it.rig.client.progress_age() < 0.3
        await generation.collect()
        assert it.rig.client.progress_age() == 0.0


# A process that supervises an engine, says the engine's pid, and waits to be killed.
ORPHANING = """
import asyncio, sys
from app.serving.supervisor import Supervisor
from app.contract.config import EngineConfig
from tests.serving.rig import make_rig

async def main():
    rig = make_rig()
    command = [sys.executable, sys.argv[1], "ok"]
    config = EngineConfig(model_dir="fake")
    Supervisor(rig.client, config, command, metrics=rig.metrics, on_give_up=sys.exit).start()
    print((await rig.client.wait_ready()).pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "stopped", [False, pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="needs prctl"))]
)
async def test_an_engine_does_not_outlive_a_killed_server(stopped: bool) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHANING, str(SCRIPT), stdout=asyncio.subprocess.PIPE, cwd=SCRIPT.parents[2]
    )
    assert server.stdout is not None
    engine = psutil.Process(int(await server.stdout.readline()))
    if stopped:
        engine.suspend()
    server.kill()
    await server.wait()
    # Whoever adopts it may take a while to reap it.
    await until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_backoff_grows_to_its_limit() -> None:
    policy = RestartPolicy()
    assert [policy.backoff(failures) for failures in (1, 2, 3, 9)] == [0.1, 0.2, 0.4, 10.0]


def test_failures_are_counted_within_a_window() -> None:
    count = FailureCount(window=300.0)
    assert [count.add(now) for now in (0.0, 100.0, 290.0, 350.0, 1000.0)] == [1, 2, 3, 3, 1]


def test_time_that_an_engine_stood_still_does_not_widen_the_gap_between_failures() -> None:
    count = FailureCount(window=300.0)
    assert [count.add(now, stalled=600.0) for now in (700.0, 1400.0, 2100.0)] == [1, 2, 3]
