"""`tuili ps`, `show` and `stop` against a live server, and `show` of what is on the disk."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.cli import main
from tests.api.conftest import Server, listening
from tests.serving.rig import MODEL
from tests.store.tiny import write_gguf


async def tuili(*args: str) -> tuple[int | None, str, str]:
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "app.cli", *args, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_what_a_server_has_loaded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    code, out, err = await tuili("ps")
    assert (code, err) == (0, "")
    assert MODEL in out
    assert "the server ends" in out
    code, out, _ = await tuili("show", MODEL, "--url", server.url)
    assert code == 0
    assert "vocab size" in out


async def test_a_server_that_keeps_its_models_is_not_said_to_have_stopped_one(server: Server) -> None:
    if "keep_alive" not in (await server.post("/api/generate", {"keep_alive": 0})).headers.get("x-ignored-params", ""):
        pytest.skip("this server heeds keep_alive")
    code, out, err = await tuili("stop", MODEL, "--url", server.url)
    assert (code, out) == (1, "")
    assert f"keeps {MODEL} loaded; end the server itself" in err


@pytest.fixture
async def forgetful() -> AsyncIterator[str]:
    """A server that unloads what it is told to."""

    async def generate(request: Request) -> Response:
        body = await request.json()
        unloads = body["model"] == "m" and body["keep_alive"] == 0
        return JSONResponse({"model": body["model"], "done": True, "done_reason": "unload" if unloads else "load"})

    async def processes(_: Request) -> Response:
        return JSONResponse({"models": []})

    routes = [Route("/api/generate", generate, methods=["POST"]), Route("/api/ps", processes)]
    async with listening(Starlette(routes=routes)) as url:
        yield url


async def test_a_model_is_unloaded(forgetful: str) -> None:
    assert await tuili("stop", "m", "--url", forgetful) == (0, "unloaded m\n", "")
    code, out, err = await tuili("ps", "--url", forgetful)
    assert (code, out) == (0, "")
    assert "no models are loaded" in err


async def test_what_goes_wrong_is_one_line(server: Server) -> None:
    for args, message in (
        (("ps", "--url", "http://127.0.0.1:1"), "cannot reach http://127.0.0.1:1/api/ps"),
        (("stop", "fake-mdel", "--url", server.url), f"(did you mean {MODEL}?)"),
        (("show", "nothing", "--url", server.url), "HTTP 404"),
    ):
        code, out, err = await tuili(*args)
        assert (code, out) == (1, "")
        assert message in err
        assert len(err.splitlines()) == 1


def test_what_is_on_the_disk(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    result = CliRunner().invoke(main, ["show", str(file), "--home", str(tmp_path / "home")])
    assert result.exit_code == 0, result.output
    for text in ("tiny", "Llama", "128", str(file)):
        assert text in result.output
    typo = CliRunner().invoke(main, ["show", "smolm2-135m", "--home", str(tmp_path / "home")])
    assert typo.exit_code == 1
    assert "did you mean smollm2-135m" in typo.output
