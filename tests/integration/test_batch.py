"""`tuili batch` as a user runs it, with the real model: killed and gone on with, and with the model in its process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.integration.server import Server

COMMAND = (sys.executable, "-m", "app.cli", "batch")
WAIT_SECONDS = 120.0


def write(path: Path, count: int) -> Path:
    file = path / "requests.jsonl"
    rows = [
        {
            "custom_id": f"row-{index}",
            "method": "POST",
            "url": "/v1/chat/completions" if index % 2 else "/v1/completions",
            "body": {
                "max_tokens": 8,
                "temperature": 0,
                **({"messages": [{"role": "user", "content": f"Say {index}."}]} if index % 2 else {"prompt": "The"}),
            },
        }
        for index in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def results_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_that_is_killed_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    file, output = write(tmp_path, 40), tmp_path / "results.jsonl"
    command = [*COMMAND, str(file), "-o", str(output), "--url", server.url, "--concurrency", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    ends = time.monotonic() + WAIT_SECONDS
    while (not output.exists() or output.read_bytes().count(b"\n") < 5) and time.monotonic() < ends:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = output.read_bytes()
    assert 5 <= before.count(b"\n") < 40
    # As if it had been killed in the middle of a row, too.
    output.write_bytes(before + b'{"id":"batch_req_0123","custom_id":"row-')

    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=WAIT_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert f"40 of 40 rows done, {before.count(bytes([10]))} of them before, 0 failed" in done.stderr.decode()
    assert b"\x1b" not in done.stderr, "no progress without a terminal"
    results = results_of(output)
    assert sorted(result["custom_id"] for result in results) == sorted(f"row-{index}" for index in range(40))
    assert output.read_bytes().startswith(before)
    assert {result["response"]["status_code"] for result in results} == {200}
    texts = {
        result["response"]["body"]["choices"][0]["text"] for result in results if int(result["custom_id"][4:]) % 2 == 0
    }
    assert len(texts) == 1  # the same prompt, greedily


def test_the_model_may_be_in_the_same_process(tiny_llama: Path, tmp_path: Path) -> None:
    file = write(tmp_path, 6)
    command = [*COMMAND, str(file), "--model", str(tiny_llama), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, timeout=WAIT_SECONDS, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout == b""
    assert b"6 of 6 rows done, 3 failed" in done.stderr.splitlines()[-1]
    results = {result["custom_id"]: result for result in results_of(tmp_path / "requests.results.jsonl")}
    assert len(results) == 6
    for custom_id, result in results.items():
        # It has no chat template, which a row says and not the run.
        assert result["response"]["status_code"] == (400 if int(custom_id[4:]) % 2 else 200)
    # Nothing is left: no model is needed, not even one that there is.
    again = subprocess.run(
        [*COMMAND, str(file), "--model", "/nowhere"], capture_output=True, timeout=WAIT_SECONDS, check=False
    )
    assert again.returncode == 1
    assert again.stderr.startswith(b"6 of 6 rows done, 6 of them before, 3 failed")


def test_settings_of_a_model_go_with_no_server() -> None:
    command = [*COMMAND, __file__, "--url", "http://127.0.0.1:1", "--model", "x"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=WAIT_SECONDS, check=False)
    assert done.returncode == 2
    assert b"--model is for a model that is loaded here" in done.stderr
