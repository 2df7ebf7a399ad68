"""What a start prints for people."""

from __future__ import annotations

import io
import json
import shlex
import socket
from typing import Any

import msgspec
import pytest
from rich.console import Console

from app.contract.frames import LoadProgress
from app.serve.banner import Banner, Phases
from app.serve.loading_bar import progress_line
from app.serve.sockets import local_url_of
from tests.fakes import fake_info, kv_group

PLAIN: dict[str, Any] = {"needs_key": False, "sampling": {"temperature": 0.6, "top_k": 40}, "is_recommended": False}
INFO = fake_info([msgspec.structs.replace(kv_group(), dtype="bfloat16")], quantization="int8", kernels="avx2")


def test_the_ready_line_tells_formats_and_kernels() -> None:
    line = Banner("http://127.0.0.1:1", "m", **PLAIN).ready_line(INFO, 1.0)
    assert "int8 weights, float32 activations, bfloat16 KV cache, avx2 kernels" in line


def test_the_ready_line_tells_what_another_library_computes() -> None:
    theirs = msgspec.structs.replace(INFO, via="transformers")
    line = Banner("http://127.0.0.1:1", "m", **PLAIN).ready_line(theirs, 1.0)
    assert "avx2 kernels, via transformers: slow, theirs)" in line


def test_the_curl_survives_any_name() -> None:
    curl = shlex.split(Banner("http://127.0.0.1:1", "it's", **PLAIN).ready_line(INFO, 1.0).splitlines()[1])
    assert json.loads(curl[-1])["model"] == "it's"


def test_the_ready_line_tells_how_answers_are_sampled() -> None:
    def last(**other: Any) -> str:
        return Banner("http://127.0.0.1:1", "m", **PLAIN | other).ready_line(INFO, 1.0).splitlines()[2]

    assert "temperature 0.6, top_k 40 where a request does not say (by --default-sampling" in last()
    assert "(as the model recommends)" in last(is_recommended=True)
    assert "temperature 1 " in last(sampling={})


def test_the_last_line_names_the_pages() -> None:
    said = Banner("http://192.0.2.1:1", "m", **PLAIN, page="http://127.0.0.1:1").ready_line(INFO, 1.0)
    assert said.splitlines()[-1] == "  In a browser: http://127.0.0.1:1/ to chat, http://127.0.0.1:1/docs for the API."
    assert "browser" not in Banner("http://127.0.0.1:1", "m", **PLAIN).ready_line(INFO, 1.0), "a server without pages"


@pytest.mark.parametrize(
    ("host", "at"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")],  # noqa: S104
)
def test_a_browser_here_finds_a_server_that_listens_everywhere(host: str, at: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            pytest.skip("no such addresses here")
        assert local_url_of(sock) == f"http://{at}:{sock.getsockname()[1]}"


@pytest.mark.parametrize(
    ("phase", "done", "said"),
    [
        ("weights", 25_000_000, "weights          25 %, 12.5 MB/s, 6 s left"),
        ("warmup", 50_000_000, "warmup           50 %, 2 s left"),
        ("weights", 0, "weights           0 %"),
    ],
)
def test_a_long_load_says_its_rate_and_what_is_left(phase: str, done: int, said: str) -> None:
    assert progress_line(LoadProgress(phase=phase, done=done, total=100_000_000, seconds=2.0)) == said


def test_a_bar_on_a_terminal_leaves_only_the_lines_of_phases() -> None:
    drawn, lines = io.StringIO(), list[str]()
    phases = Phases(lines.append, Console(file=drawn, force_terminal=True, width=100))
    for done in (0, 30_000_000, 60_000_000):
        phases.engine_progress(LoadProgress(phase="weights", done=done, total=60_000_000))
    phases.engine_progress(LoadProgress(phase="warmup"))
    phases.end()
    assert "60.0/60.0 MB" in drawn.getvalue()
    assert [line.split()[0] for line in lines] == ["weights", "warmup"]
    assert all(line.endswith(" s") for line in lines)
