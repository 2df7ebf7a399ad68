"""A newcomer's first hour: README's commands in order, each once with a slip of the finger. Every answer says what to
do next, and none is a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.store import ModelFiles
from tests.integration.server import Server, start_server

pytestmark = pytest.mark.slow
NAME = "smollm2-135m"


@dataclass
class Newcomer:
    """Somebody with a home of models of their own."""

    home: Path

    def types(self, *args: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs ``tuili ARGS``; of a command that reads a pipe, ``text`` is in it."""
        command = [sys.executable, "-m", "app.cli", *args]
        env = {**os.environ, "TUILI_HOME": str(self.home), **environment}
        done = subprocess.run(command, input=text, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert "Traceback" not in done.stderr
        return done

    def does(self, *args: str, text: str = "", **environment: str) -> str:
        """What a command prints that succeeds."""
        done = self.types(*args, text=text, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def slips(self, *args: str, text: str = "", **environment: str) -> str:
        """What a command says that fails, in its last line."""
        done = self.types(*args, text=text, **environment)
        assert done.returncode in (1, 2), done.stdout
        return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, smollm2: ModelFiles) -> Newcomer:
    """The model is a copy of the other tests': its package is fetched once."""
    home = tmp_path_factory.mktemp("newcomer") / "tuili"
    home.mkdir(mode=0o700)
    shutil.copytree(smollm2.directory, home / "models" / NAME)
    return Newcomer(home)


@pytest.fixture(scope="module")
def running(newcomer: Newcomer) -> Iterator[Server]:
    with start_server(NAME, env={"TUILI_HOME": str(newcomer.home)}) as server:
        yield server


def test_finding_the_way(newcomer: Newcomer) -> None:
    verbs = newcomer.does("--help")
    for verb in ("serve", "run", "pull", "list", "show", "rm", "ps", "stop", "chat", "top", "completion"):
        assert f"\n  {verb} " in verbs
    assert "did you mean serve?" in newcomer.slips("serv")
    assert "Llama" in newcomer.does("models")


def test_pulling(newcomer: Newcomer) -> None:
    assert newcomer.does("pull", NAME).startswith(f"{NAME}: ")
    assert f"did you mean {NAME}?" in newcomer.slips("pull", "smolm2-135m")
    assert "name is empty: give a built-in name" in newcomer.slips("pull", "")
    assert "org/name" in newcomer.slips("pull", "https://example.com/model.gguf")
    assert "neither a model directory nor a GGUF file" in newcomer.slips("pull", __file__)


def test_looking(newcomer: Newcomer) -> None:
    assert newcomer.does("list").startswith(NAME)
    assert "Llama" in newcomer.does("show", NAME)
    assert f"did you mean {NAME}?" in newcomer.slips("show", "smollm-135m")


def test_serving_slips(newcomer: Newcomer) -> None:
    assert f"did you mean {NAME}?" in newcomer.slips("serve", "smolm2-135m")
    assert "'--port'" in newcomer.slips("serve", NAME, "--prot", "9000")
    assert "bad setting port = 'nine'" in newcomer.slips("serve", NAME, "--port", "nine")


def test_the_page_and_paths_nearby(running: Server) -> None:
    assert httpx.get(running.url).status_code == 200
    assert httpx.head(f"{running.url}/v1/models").status_code == 200
    lost = httpx.post(f"{running.url}/v1/chat/completion", json={})
    assert lost.status_code == 404
    assert "did you mean /v1/chat/completions" in lost.json()["error"]["message"]


def test_talking_with_the_server(newcomer: Newcomer, running: Server) -> None:
    here = {"OPENAI_BASE_URL": f"{running.url}/v1"}
    assert newcomer.does("chat", "--max-tokens", "8", text="Name a river.\n", **here).strip()
    assert f"did you mean {NAME}?" in newcomer.slips("chat", "-m", "smolm2-135m", text="Hi\n", **here)
    assert NAME in newcomer.does("ps", **here)
    assert newcomer.does("top", "--once", **here).startswith(NAME)
    assert "tuili serve starts a server" in newcomer.slips("ps", "--url", "http://127.0.0.1:1")
    assert f"did you mean {NAME}?" in newcomer.slips("stop", "smolm2-135m", **here)


def test_one_answer_without_a_server(newcomer: Newcomer) -> None:
    assert newcomer.does("run", NAME, "Name a river.", "--max-tokens", "8").strip()
    assert f"did you mean {NAME}?" in newcomer.slips("run", "smolm2-135m", "Hi")
    assert "nothing is asked" in newcomer.slips("run", NAME)


def test_ctrl_c_says_what_it_waits_for(newcomer: Newcomer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2000, "stream": True}
    body |= {"ignore_eos": True, "min_tokens": 2000}
    with start_server(NAME, "--drain-timeout", "120", env={"TUILI_HOME": str(newcomer.home)}) as server:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
            chunks = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {"))
            assert next(chunks)["choices"]
            server.process.send_signal(signal.SIGINT)
            while not any(line.startswith("stopping: ") for line in server.lines):
                next(chunks)
            server.process.send_signal(signal.SIGINT)
        server.process.wait(60)
    assert "stopping: waiting for 1 request, at most 120 s; Ctrl-C again ends them now\n" in server.lines


def test_tidying_up(newcomer: Newcomer) -> None:
    assert f"did you mean {NAME}?" in newcomer.slips("rm", "smolm2-135m")
    assert "removed packed weights: " in newcomer.does("rm", "--packed")
    assert newcomer.does("rm", NAME).startswith(f"removed {NAME}: ")
    done = newcomer.types("list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "fetch one with: tuili pull" in done.stderr
