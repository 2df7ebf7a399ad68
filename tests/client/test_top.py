"""`tuili top`: what it reads off metrics and counters, and as a user runs it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.client.energy import EnergyCounters
from app.client.engine_view import EngineViews
from app.client.figures import load_between, read_figures
from app.client.target import TargetError
from tests.api.conftest import start_server
from tests.serving.rig import MODEL, until

PAGE = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{model_name="a"}} 3.0
vllm:num_requests_running{{model_name="b"}} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{model_name="a"}} 0.25
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{{model_name="a"}} {generated}
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{{model_name="a"}} {looked_up}
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{{model_name="a"}} {found}
"""


def test_rates_of_each_model() -> None:
    before = read_figures(PAGE.format(generated=100, looked_up=10, found=0))
    after = read_figures(PAGE.format(generated=150, looked_up=30, found=5))
    assert list(after) == ["a", "b"]
    load = load_between(before["a"], after["a"], 2.0)
    assert (load.running, load.kv_usage, load.generated_rate, load.hit_ratio) == (3, 0.25, 25.0, 0.25)
    assert load_between(before["b"], after["b"], 2.0).hit_ratio is None
    anew = read_figures(PAGE.format(generated=8, looked_up=0, found=0))
    assert load_between(after["a"], anew["a"], 2.0).generated_rate == 4.0


@pytest.mark.parametrize("page", ["", "# TYPE x gauge\nx 1.0\n", "<html></html>", "{"])
def test_pages_of_others(page: str) -> None:
    with pytest.raises(TargetError, match="/metrics"):
        read_figures(page)


def test_joules_of_a_counter_that_wraps(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")
        (tmp_path / name / "energy_uj").write_text("999000000\n")
    counters = EnergyCounters(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000\n")
    assert counters.read()["CPU"] == pytest.approx(2.0)
    assert counters.read()["CPU"] == 0.0
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert counters.read()["CPU"] == 0.0


def test_no_counters(tmp_path: Path) -> None:
    assert "CPU" not in EnergyCounters(tmp_path).read()


async def test_one_reading_of_a_live_server() -> None:
    async with start_server() as server:
        command = [sys.executable, "-m", "app.cli", "top", "--once", "--interval", "0.1", "--url", server.url]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.decode().startswith(f"{MODEL}  state ready  running 0  waiting 0  out tok/s 0.0")
    assert "  cached 0%  " in out.decode()


async def test_what_an_engine_tells_is_read_where_there_is_one() -> None:
    async with start_server(delay=0.01) as server:
        asking = asyncio.create_task(server.post("/v1/completions", {"prompt": "x" * 40, "max_tokens": 400}))
        await until(lambda: server.rig.client.stats.num_running == 1)
        with httpx.Client() as http:
            views = await asyncio.to_thread(EngineViews(server.url, http).read, [MODEL, "none"])
        asking.cancel()
    assert list(views) == [MODEL]
    assert views[MODEL].state == "ready"
    (row,) = views[MODEL].requests
    assert (row.status, row.prompt_tokens) == ("running", 40)


@pytest.mark.parametrize(
    ("status", "body", "asked"),
    [(404, b"", 1), (403, b"{}", 1), (200, b"<html>", 1), (200, b'{"object": "list"}', 1), (503, b"", 3)],
)
def test_a_server_without_that_route_is_asked_once(status: int, body: bytes, asked: int) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, content=body)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        views = EngineViews("http://there", http)
        assert [views.read(["m"]) for _ in range(3)] == [{}, {}, {}]
    assert len(seen) == asked


def test_nobody_there_is_one_line() -> None:
    command = [sys.executable, "-m", "app.cli", "top", "--url", "http://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("tuili: error: cannot reach http://127.0.0.1:1/metrics")
    assert len(done.stderr.splitlines()) == 1
