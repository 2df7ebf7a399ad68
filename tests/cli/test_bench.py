"""`tuili bench serve` as a user runs it: a process of its own against a live server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.bench.options import Options
from app.bench.serve import run
from app.cli import main
from tests.api.conftest import Server, start_server
from tests.serving.rig import until

SYNTHETIC = ("--prompt-type", "ids", "--id-range", "32-127", "--input-len", "20,40", "--output-len", "5")


async def start(*args: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "app.cli", "bench", "serve", *args]
    return await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def bench(*args: str) -> tuple[int | None, dict[str, Any], str]:
    """Exit code, row, and what was written for people."""
    process = await start(*args)
    out, err = await process.communicate()
    lines = out.decode().splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err.decode()


async def test_a_run_from_the_command_line(server: Server, tmp_path: Path) -> None:
    output, requests, plot = (tmp_path / name for name in ("rows.jsonl", "requests.jsonl", "plot.png"))
    files = ("--output", str(output), "--requests-output", str(requests), "--plot", str(plot))
    shape = ("--num-prompts", "12", "--concurrency", "3", "--warmup", "2", "--seed", "5", "--api-key", "s3cret")
    slo = ("--goodput", "ttft:60000", "tpot:60000", "e2el:60000")
    code, row, text = await bench("--url", f"{server.url}/v1", *SYNTHETIC, *shape, *files, *slo)
    assert code == 0, text
    assert (row["completed"], row["failed"], row["cancelled"], row["cached_tokens"]) == (12, 0, 0, 0)
    assert (row["total_input_tokens"], row["total_output_tokens"]) == (6 * 20 + 6 * 40, 12 * 5)
    assert len(server.rig.ledger.records) == 14, "two of warm-up"
    assert row["good_requests"] == 12
    for measure in ("ttft", "tpot", "itl", "e2el"):
        for figure in ("mean", "median", "std", "p50", "p90", "p99"):
            assert row[f"{figure}_{measure}_ms"] >= 0
    assert {"request_throughput", "output_throughput", "total_token_throughput", "request_goodput"} <= row.keys()
    assert (row["mode"], row["model"], row["seed"], row["concurrency"]) == ("closed", "fake-model", 5, 3)
    assert "s3cret" not in output.read_text() + json.dumps(row)
    assert json.loads(output.read_text()) == row
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    assert [request["index"] for request in asked] == list(range(12))
    assert plot.read_bytes().startswith(b"\x89PNG")
    for word in ("Requests/s", "TTFT", "p99", "Good requests/s"):
        assert word in text


async def test_rows_are_appended_and_an_open_loop_of_a_file(server: Server, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "rows.jsonl"
    lines = [{"prompt": f"question {i}", "max_tokens": 3} for i in range(5)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    shape = ("--prompts", str(prompts), "--endpoint", "chat", "--request-rate", "500", "--output", str(output))
    for _ in range(2):
        code, row, text = await bench("--url", server.url, "--input-len", "5", *shape)
        assert code == 0, text
    assert (row["completed"], row["mode"], row["prompts"]) == (5, "open", "prompts.jsonl")
    assert row["cached_tokens"] > 0
    assert "prefix cache" in text
    assert len(output.read_text().splitlines()) == 2


async def test_ctrl_c_prints_what_was_measured() -> None:
    async with start_server(delay=0.005) as server:
        process = await start("--url", server.url, *SYNTHETIC, "--duration", "600", "--concurrency", "2")
        await until(lambda: len(server.rig.ledger.records) >= 8)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        await server.rig.settled()
    row = json.loads(out.splitlines()[-1])
    assert process.returncode == 130
    assert row["interrupted"]
    assert row["completed"] >= 8 - 2 - 2, "two were of warm-up, of two the end may not have arrived"
    assert row["failed"] == 0
    assert row["mean_ttft_ms"] > 0
    assert b"interrupted" in err
    assert b"Traceback" not in err


async def test_when_every_request_fails_the_exit_code_says_so(server: Server) -> None:
    shape = ("--input-len", "600", "--num-prompts", "3", "--warmup", "0", "--prompt-type", "ids", "--id-range", "32-99")
    code, row, text = await bench("--url", server.url, *shape)
    assert code == 1
    assert row["errors"] == {"http_400": 3}
    assert "3 × http_400" in text


async def test_what_cannot_begin_ends_with_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "a"}')
    one = ("--prompts", str(tmp_path / "one.jsonl"))
    for args, message in (
        (("--url", "http://127.0.0.1:1"), "cannot reach http://127.0.0.1:1/v1/models"),
        (("--url", f"{server.url}/nowhere"), "HTTP 404"),
        (("--url", server.url, "--input-len", "600"), "warm-up request failed (http_400)"),
        (("--url", server.url, *one, "--num-prompts", "2"), "has 1 prompts"),
        (("--url", server.url, "--output", str(tmp_path / "no" / "file")), "is not a directory"),
    ):
        code, row, text = await bench(*args)
        assert (code, row) == (1, {}), text
        assert message in text
        assert "Traceback" not in text


async def test_a_picture_that_fails_loses_no_figures(server: Server, tmp_path: Path) -> None:
    plot = tmp_path / "plot.nonsense"
    code, row, text = await bench("--url", server.url, *SYNTHETIC, "--num-prompts", "2", "--plot", str(plot))
    assert (code, row["completed"]) == (0, 2)
    assert "warning" in text
    assert "nonsense" in text


def test_a_picture_without_matplotlib_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert run(Options(url="http://127.0.0.1:1", plot=tmp_path / "plot.png")) == 1
    assert "tuili[plot]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--concurrency", "2", "--request-rate", "3"], "choose"),
        (["stray"], "unexpected argument"),
        (["--goodput", "itl:3"], "none of"),
        (["--goodput", "ttft:x"], "not like"),
        (["--input-len", "0"], "at least 1"),
        (["--input-len", "a"], "not like"),
        (["--id-range", "9-3"], "not like"),
        (["--extra-body", "[1]"], "not a JSON object"),
        (["--extra-body", "{"], "--extra-body"),
        (["--prompt-type", "ids", "--endpoint", "chat"], "text only"),
    ],
)
def test_options_that_make_no_sense(args: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["bench", "serve", *args])
    assert result.exit_code == 2
    assert message in result.output


def test_the_command_and_the_options_have_the_same_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []

    def fake_run(options: Options) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr("app.bench.serve.run", fake_run)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    result = CliRunner().invoke(main, ["bench", "serve"])
    assert result.exit_code == 0, result.output
    assert seen == [Options()]


def test_the_load_generator_needs_neither_torch_nor_the_server() -> None:
    code = (
        "import sys, app.bench.serve, app.bench.plot\n"
        "print(sorted({'torch', 'fastapi', 'pydantic', 'app.api', 'app.serving', 'app.engine'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
