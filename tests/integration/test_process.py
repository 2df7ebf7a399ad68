"""The two processes from outside: what they load, how they start, die and stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

import app
from app.keys import new_key
from app.store import ModelFiles
from tests.checkpoints.fp8_files import in_blocks, write_fp8
from tests.integration.server import START_TIMEOUT, Server, engine_of, spawn, start_server

# Failing takes about a second; a start that hangs must not hang the tests.
FAILURE_BOUND = 60.0


def _maps_torch(process: psutil.Process) -> bool:
    return any("torch" in mapping.path for mapping in process.memory_maps())


@pytest.mark.skipif(not hasattr(psutil.Process, "memory_maps"), reason="no memory maps on this platform")
def test_the_live_api_process_has_no_torch(server: Server) -> None:
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hi", "max_tokens": 2}).raise_for_status()
    assert _maps_torch(engine_of(server.pid))
    assert not _maps_torch(psutil.Process(server.pid))


def test_phases_and_ready_line_are_printed(server: Server) -> None:
    text = "".join(server.lines)
    for phase in ("model", "tokenizer", "weights", "kv_cache"):
        assert re.search(rf"^ *{phase}\b.*\d\.\d+ s", text, re.MULTILINE), phase
    assert f"curl {server.url}/v1/chat/completions" in text
    assert f"In a browser: {server.url}/ to chat" in text


def test_what_the_engine_logs_is_shown(tiny_llama: Path, tmp_path: Path) -> None:
    """Of weights in FP8 and of every step; in the form of the other lines."""
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    fp8, _ = write_fp8(tiny_llama, tmp_path, quantization, in_blocks(16, 16))
    shutil.copy(tiny_llama / "tokenizer.json", fp8)
    with start_server("--model", str(fp8), "--trace-step") as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "Hi", "max_tokens": 2}).raise_for_status()
    events = [json.loads(line) for line in server.lines if line.startswith("{")]
    shown = [(event["logger"], event["event"]) for event in events if "logger" in event]
    (said,) = [event for logger, event in shown if logger == "app.runner.loading"]
    assert re.fullmatch("weights that are stored as FP8 are served as (packed )?int8", said)
    assert any(logger == "app.engine.trace" and event.startswith("step ") for logger, event in shown)


def test_with_keys_the_curl_takes_one_from_the_environment(tiny_chat: Path) -> None:
    key = "sk-0123456789abcdef"
    with start_server("--model", str(tiny_chat), env={"TUILI_API_KEYS": key}) as server:
        (command,) = [line.strip() for line in server.lines if line.strip().startswith("curl ")]
        # What the shell makes of it.
        arguments = subprocess.run(
            ["sh", "-c", command.replace("curl ", "printf '%s\\n' ", 1)],
            env={**os.environ, "TUILI_API_KEY": key},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        url, body = arguments[0], {**json.loads(arguments[-1]), "max_tokens": 2}
        headers = dict(arguments[at + 1].split(": ") for at, option in enumerate(arguments) if option == "-H")
        assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200
        assert httpx.post(url, json=body, timeout=60).status_code == 401
        assert not any(key in line for line in server.lines)


def test_prompts_are_not_logged(server: Server) -> None:
    secret = "xyzzy plugh 4711"
    httpx.post(
        f"{server.url}/v1/completions",
        json={"prompt": secret, "max_tokens": 2},
        headers={"X-Request-Id": "log-me"},
    ).raise_for_status()
    for _ in range(100):
        if any("log-me" in line for line in server.lines):
            break
        time.sleep(0.05)
    assert any("log-me" in line for line in server.lines)
    assert not any("xyzzy" in line for line in server.lines)


def test_sigterm_finishes_streams_and_exits_zero(tiny_llama: Path) -> None:
    """And readiness flips before the listener closes."""
    flags = ("--model", str(tiny_llama), "--drain-delay", "1.5")
    with start_server(*flags) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        assert http.get("/readyz").status_code == 200
        engine = engine_of(server.pid)
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGTERM)
            for _ in range(20):
                draining = http.get("/readyz")
                if draining.status_code == 503:
                    break
                time.sleep(0.05)
            assert draining.status_code == 503
            assert http.get("/livez").status_code == 200
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
        assert not engine.is_running()


def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event() -> None:
    options = ("--drain-timeout", "0.5", "--max-model-len", "8192")
    with start_server(*options) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
        assert '"error"' in rest[-1]
        assert server.process.wait(30) == 0
        assert "Traceback" not in "".join(server.lines)


def test_sigterm_while_a_model_is_fetched(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(START_TIMEOUT)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        server = spawn("--model", "some/model", env={"HF_ENDPOINT": endpoint, "TUILI_HOME": str(tmp_path)})
        asked, _ = silent.accept()  # and never answered
        with asked:
            assert server.stop() == 0
        server.close()
    assert "Traceback" not in "".join(server.lines)


def test_a_killed_engine_is_answered_for_and_replaced(tiny_llama: Path) -> None:
    with (
        start_server("--model", str(tiny_llama), "--dtype", "float32") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        body = {"prompt": "Once", "max_tokens": 450, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            engine_of(server.pid).kill()
            rest = [line for line in lines if line]
        assert '"error"' in rest[-1]
        assert "engine" in rest[-1]
        assert http.get("/livez").status_code == 200
        for _ in range(600):
            if http.get("/readyz").status_code == 200:
                break
            time.sleep(0.1)
        again = http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3})
        assert again.status_code == 200
        assert server.stop() == 0


def _fails_clearly(*args: str, env: dict[str, str] | None = None) -> str:
    """Runs a server that cannot start; returns its one error line."""
    server = spawn(*args, env=env)
    code = server.process.wait(FAILURE_BOUND)
    server.close()
    text = "".join(server.lines)
    assert code == 1, text
    assert "Traceback" not in text
    errors = [line for line in server.lines if "error" in line]
    assert len(errors) == 1, text
    return errors[0]


def test_bad_setting() -> None:
    assert "max_queue" in _fails_clearly("--max-queue", "none")


def test_impossible_host() -> None:
    assert "cannot listen on éé" in _fails_clearly("--host", "é" * 80)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - refused
def test_an_address_others_reach_needs_a_key(host: str) -> None:
    line = _fails_clearly("--host", host, env={"TUILI_API_KEYS": ""})
    assert host in line
    assert "--insecure" in line


def test_keys_from_a_file_and_the_environment(tiny_llama: Path, tmp_path: Path) -> None:
    in_file, line = new_key("alice", ["infer"])
    in_environment = "prometheus-key-0123456789"
    (tmp_path / "keys").write_text(line)
    environment = {"TUILI_API_KEYS": f"prometheus:metrics:{in_environment}"}
    flags = ["--model", str(tiny_llama), "--api-key-file", str(tmp_path / "keys")]
    with start_server(*flags, env=environment) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        assert http.get("/readyz").status_code == 200
        for path, key, status in [
            ("/v1/models", None, 401),
            ("/v1/models", in_file, 200),
            ("/v1/models", in_environment, 403),
            ("/metrics", None, 401),
            ("/metrics", in_file, 403),
            ("/metrics", in_environment, 200),
        ]:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            assert http.get(path, headers=headers).status_code == status, (path, key)
        headers = {"Authorization": f"Bearer {in_file}"}
        http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}, headers=headers).raise_for_status()
    text = "".join(server.lines)
    assert '"api_key": "alice"' in text
    assert in_file not in text
    assert in_environment not in text


def test_a_key_file_that_cannot_be_used(tmp_path: Path) -> None:
    assert "no-keys" in _fails_clearly("--api-key-file", str(tmp_path / "no-keys"))


def test_a_package_app_in_the_working_directory_is_left_alone(tiny_llama: Path, tmp_path: Path) -> None:
    """As in anybody's web project, from which the console script is run."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise RuntimeError('the wrong app')")
    root = Path(app.__file__).parents[1]
    script = f"import sys; sys.path.insert(0, {str(root)!r}); from app.cli import main; main()"
    command = [sys.executable, "-P", "-c", script, "serve", "--port", "0", "--model", str(tiny_llama)]
    server = Server(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    )
    server.start_reading()
    try:
        server.wait_ready()
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()
        server.close()


def test_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in _fails_clearly("--port", str(port))


def test_truncated_gguf(smollm2: ModelFiles, tmp_path: Path) -> None:
    (weights,) = smollm2.weights
    cut = tmp_path / "cut.gguf"
    with weights.open("rb") as source, cut.open("wb") as target:
        target.write(source.read(weights.stat().st_size // 2))
    line = _fails_clearly("--model", str(cut), env={"TUILI_HOME": str(tmp_path / "home")})
    assert "cut.gguf" in line


def test_missing_tensor(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.down_proj.weight" in _fails_clearly("--model", str(broken))


def test_unknown_model(tmp_path: Path) -> None:
    assert "no-such-model" in _fails_clearly("--model", "no-such-model", env={"TUILI_HOME": str(tmp_path)})
