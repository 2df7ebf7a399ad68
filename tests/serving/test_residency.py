"""Which models are loaded, and when: memory, keep-alive times, and requests that wait."""

from __future__ import annotations

import asyncio
import time

import pytest

from app.duration import FOREVER
from app.errors import RequestError
from app.serving.resident import Resident
from app.serving.states import ModelState
from app.store import StoreError
from tests.serving.residents import KEEP_ALIVE, SIZE, House, house
from tests.serving.rig import sample_value, until

ENDPOINT = "/v1/completions"


async def use(resident: Resident, keep_alive: float | None = None, *, seconds: float = 20.0) -> None:
    """One request that ends at once."""
    async with resident.in_use(time.monotonic() + seconds, endpoint=ENDPOINT, keep_alive=keep_alive):
        assert resident.life.state is ModelState.READY
        assert resident.life.generator is not None


def count(it: House, name: str, resident: Resident, **labels: str) -> float:
    page, _ = it.metrics.render()
    wanted = [f'{key}="{value}"' for key, value in {"model_name": resident.name, **labels}.items()]
    lines = [line for line in page.decode().splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(part in line for part in wanted))


async def test_a_model_is_loaded_when_it_is_asked_for_and_goes_after_its_time() -> None:
    async with house("a", "b") as it:
        a, b = it.residents
        assert it.states == "idle idle"
        await use(a)
        assert it.states == "ready idle"
        it.clock.now += KEEP_ALIVE - 1
        await use(b)
        it.residency.expire()
        assert it.states == "ready ready", "its time is not over"
        it.clock.now += 1
        it.residency.expire()
        await until(lambda: it.states == "idle ready")
        assert a.life.client.ready is None
        await use(a)
        assert [source.starts for source in it.sources] == [2, 1]
        assert count(it, "tuili_model_unloads_total", a, why="keep_alive") == 1
        assert count(it, "tuili_model_loads_total", a, outcome="ready") == 2
        assert count(it, "tuili_model_state", b, state="ready") == 1


async def test_a_model_is_measured_except_while_the_server_starts() -> None:
    async with house("a", "b", "c", room=3) as it:
        a, b, c = it.residents
        for source in it.sources:
            source.guessed = 9 * SIZE
        it.sources[0].guessed = 2 * SIZE
        it.residency.opened.clear()
        loading = a.preload()
        await until(lambda: a.life.promised == 2 * SIZE)
        it.residency.opened.set()
        await loading
        await c.life.look()
        await use(b)
        await use(c)
        assert it.states == "ready ready ready", "they fit by their true sizes"
        assert [source.measured for source in it.sources] == [0, 1, 2]


async def test_requests_say_how_long_it_stays() -> None:
    async with house("a") as it:
        (a,) = it.residents
        await use(a, keep_alive=0)
        await until(lambda: it.states == "idle")
        await use(a, keep_alive=FOREVER)
        it.clock.now += 1e9
        it.residency.expire()
        assert it.states == "ready"
        assert a.expires_in == FOREVER
        await use(a)  # the next request's own is what counts
        assert a.expires_in == KEEP_ALIVE
        async with a.in_use(None, endpoint=ENDPOINT):
            a.expire_soon()
            assert it.states == "ready"
        assert it.states == "ready", "it had a keep-alive time of its own"
        a.expire_soon()
        await until(lambda: it.states == "idle")


async def test_the_timer_unloads_by_itself() -> None:
    async with house("a", keep_alive=0.02) as it:
        it.residency.now = time.monotonic
        await use(it.residents[0])
        await until(lambda: it.states == "idle")


async def test_short_of_memory_the_least_recently_used_goes() -> None:
    async with house("a", "b", "c", room=2) as it:
        a, b, c = it.residents
        for resident in (a, b, a):
            it.clock.now += 1
            await use(resident)
        await use(c)
        assert it.states == "ready idle ready"
        assert count(it, "tuili_model_unloads_total", b, why="memory") == 1


async def test_one_with_work_is_never_unloaded() -> None:
    async with house("a", "b", room=1) as it:
        a, b = it.residents
        async with a.in_use(None, endpoint=ENDPOINT, keep_alive=0):
            waiting = asyncio.create_task(use(b))
            await until(lambda: "memory" in b.life.reason)
            it.clock.now += 2 * KEEP_ALIVE
            it.residency.expire()
            with pytest.raises(RuntimeError):
                a.unload("memory")
            assert it.states == "ready loading"
        await waiting
        assert it.states == "idle ready"


async def test_one_that_is_used_without_a_gap_makes_room_in_the_end() -> None:
    async with house("a", "b", room=1, patience=0) as it:
        a, b = it.residents
        async with a.in_use(None, endpoint=ENDPOINT):
            other = asyncio.create_task(use(b))
            await until(lambda: not a._takes_requests)
            later = asyncio.create_task(use(a))
            await asyncio.sleep(0)
        await asyncio.gather(other, later)
        assert [source.starts for source in it.sources] == [2, 1]


async def test_one_that_nobody_waits_for_any_more_takes_no_memory() -> None:
    async with house("a", "b", room=1, patience=0) as it:
        a, b = it.residents
        async with a.in_use(None, endpoint=ENDPOINT):
            waiting = asyncio.create_task(use(b))
            await until(lambda: not a._takes_requests)
            waiting.cancel()
            await until(lambda: it.states == "ready idle")
            await use(a)
        assert [source.starts for source in it.sources] == [1, 0]
        assert count(it, "tuili_requests_refused_total", b, reason="client_left", endpoint=ENDPOINT) == 1


async def test_concurrent_first_requests_load_once() -> None:
    async with house("a") as it:
        await asyncio.gather(*(use(it.residents[0]) for _ in range(8)))
        assert it.sources[0].starts == 1


async def test_a_client_that_leaves_while_it_loads_leaves_it_to_the_others() -> None:
    async with house("a") as it:
        (a,), (source,) = it.residents, it.sources
        source.may_load.clear()
        leaves, stays = asyncio.create_task(use(a)), asyncio.create_task(use(a))
        await until(lambda: a.life.how_far is not None)
        assert a.life.how_far is not None
        assert (it.states, a.life.reason) == ("loading", "the engine is loading (weights)")
        assert (a.life.how_far.done, a.life.how_far.total) == (1, 4)
        leaves.cancel()
        await asyncio.wait({leaves})
        source.may_load.set()
        await stays
        # Nobody at all: it is loaded, and goes after its time.
        a.expire_soon()
        await until(lambda: it.states == "idle")
        source.may_load.clear()
        leaves = asyncio.create_task(use(a))
        await until(lambda: it.states == "loading" and source.starts == 2)
        leaves.cancel()
        source.may_load.set()
        await until(lambda: it.states == "ready")
        it.clock.now += KEEP_ALIVE
        it.residency.expire()
        await until(lambda: it.states == "idle")


async def test_what_waits_is_bounded_in_number_and_time() -> None:
    async with house("a", max_waiting=2) as it:
        (a,), (source,) = it.residents, it.sources
        source.may_load.clear()
        waiting = [asyncio.create_task(use(a)) for _ in range(2)]
        await until(lambda: source.starts == 1)
        with pytest.raises(RequestError) as full:
            await use(a)
        assert (full.value.status, full.value.code) == (429, "overloaded")
        waiting.pop().cancel()
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as late:
            await use(a, seconds=0.01)
        assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
        assert "weights" in late.value.message or "starting" in late.value.message
        source.may_load.set()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize("broken", [ValueError("lm_head.weight is missing"), StoreError("no such repository")])
async def test_a_broken_one_says_why_and_harms_no_other(broken: Exception) -> None:
    async with house("a", "b") as it:
        a, b = it.residents
        it.sources[1].broken = broken
        async with a.in_use(None, endpoint=ENDPOINT):
            for _ in range(2):
                with pytest.raises(RequestError, match=str(broken)) as error:
                    await use(b)
                assert (error.value.status, error.value.code, error.value.retry_after) == (503, "engine_failed", None)
            starts = it.sources[1].starts
            assert it.states == "ready failed"
            assert str(broken) in b.life.reason
            assert starts <= 1, "who comes soon after is told, without another try"
            it.sources[1].broken = None
            it.clock.now += 31
            await use(b)
            assert it.states == "ready ready"


async def test_one_that_can_never_fit_is_refused_for_good() -> None:
    async with house("a", "b", room=1) as it:
        a, b = it.residents
        it.sources[1].size = 2 * SIZE
        await use(a)
        for _ in range(2):
            with pytest.raises(RequestError, match=r"model_memory.*kv_cache_memory") as error:
                await use(b)
            assert (error.value.status, error.value.retry_after) == (503, None)
            it.clock.now += 1e6
        assert it.states == "ready failed", "the other was not unloaded for it"


async def test_one_whose_engine_is_lost_is_tried_again() -> None:
    async with house("a", "b", room=1) as it:
        a, b = it.residents
        await use(a)
        it.sources[0].engines[0].fail("it failed 3 times")
        assert it.states == "failed idle"
        with pytest.raises(RequestError, match="failed 3 times") as error:
            await use(a)
        assert error.value.retry_after is not None
        await use(b)  # its memory is free
        it.clock.now += error.value.retry_after
        await use(a)


async def test_absent_ones_are_pulled_and_show_it() -> None:
    async with house("a", "b") as it:
        a, b = it.residents
        it.sources[0].absent = True
        it.sources[0].may_fetch.clear()
        await asyncio.gather(a.life.look(), b.life.look())
        assert it.states == "absent idle"
        waiting = asyncio.create_task(use(a))
        await until(lambda: a.life.how_far is not None)
        assert a.life.how_far is not None
        assert (it.states, a.life.reason) == ("pulling idle", "Downloading it")
        assert (a.life.how_far.done, a.life.how_far.total) == (40, 100)
        await use(b)
        it.sources[0].may_fetch.set()
        await waiting


async def test_draining_loads_nothing_and_lets_work_end() -> None:
    async with house("a", "b") as it:
        a, b = it.residents
        it.sources[1].may_load.clear()
        async with a.in_use(None, endpoint=ENDPOINT):
            waiting = asyncio.create_task(use(b))
            await until(lambda: it.sources[1].starts == 1)
            it.models.drain()
            with pytest.raises(RequestError, match="shutting down") as error:
                await waiting
            assert (error.value.status, error.value.retry_after) == (503, 1.0)
            with pytest.raises(RequestError, match="shutting down"):
                await use(b)
            assert a.life.is_loaded
            it.sources[1].may_load.set()


async def test_several_models_have_one_page_of_metrics() -> None:
    async with house("a", "b") as it:
        for resident in it.residents:
            await use(resident)
        text = it.metrics.render()[0].decode()
        assert text.count("# TYPE tuili_requests_running gauge") == 1
        assert text.count("# TYPE process_resident_memory_bytes gauge") <= 1
        assert {line.split("{")[0] for line in text.splitlines() if 'model_name="a"' in line} == {
            line.split("{")[0] for line in text.splitlines() if 'model_name="b"' in line
        }
        assert sample_value(it.metrics, "tuili_engine_state", model_name="a", state="ready") == 1
