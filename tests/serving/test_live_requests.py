"""Requests under way, by id."""

from __future__ import annotations

from app.contract.frames import RequestTimings
from app.serving.live_requests import LiveRequests, LiveStatus
from app.serving.phases import Phases, longest, phases
from tests.serving.rig import read, running


async def test_only_so_many_ended_requests_are_remembered() -> None:
    live = LiveRequests(max_ended=2)
    async with running() as rig:
        for request_id in ("a", "b", "a", "c"):
            generation = await rig.submit("x", max_tokens=1)
            async with live.track(request_id, [generation]):
                await read(generation)
    assert live.find("b") is None
    assert [state.status for name in "ac" if (state := live.find(name))] == [LiveStatus.FINISHED] * 2


async def test_the_latest_of_an_id_is_shown() -> None:
    live = LiveRequests()
    async with running() as rig:
        first, second = await rig.submit("x", max_tokens=300), await rig.submit("xyz", max_tokens=300)
        async with live.track("same", [first]):
            async with live.track("same", [second], answer_id="other"):
                assert live.count == 2
                state = live.find("same")
                assert state is not None
                assert state.prompt_tokens == 3
            state = live.find("same")
            assert state is not None
            assert (state.prompt_tokens, state.status) == (1, LiveStatus.QUEUED)
        assert live.count == 0
        ended = live.find("same")
        assert ended is not None
        assert ended.status is LiveStatus.ABORTED  # leaving the block closed it unread
        assert rig.client.in_flight == 0


def test_phases_of_timings() -> None:
    assert phases(None, 9.0) == phases(RequestTimings(1.0), 9.0) == Phases()
    assert phases(RequestTimings(1.0, 2.0), 9.0) == Phases(1.0)
    assert phases(RequestTimings(1.0, 2.0, 4.0), 9.0) == Phases(1.0, 2.0, 5.0)
    assert phases(RequestTimings(1.0, 2.0, 4.0, 8.0), 9.0) == Phases(1.0, 2.0, 4.0)
    assert longest([Phases(), Phases(3.0, 1.0), Phases(1.0, 2.0, 0.5)]) == Phases(3.0, 2.0, 0.5)
    assert longest([]) == Phases()
