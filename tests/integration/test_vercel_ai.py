"""Vercel's `ai` with `@ai-sdk/openai-compatible`, unmodified, against a real server with the real model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.server import Server

MODEL = "smollm2-135m"
PACKAGES = Path(os.environ.get("NODE_CLIENTS", ""))
"""Directory whose node_modules hold them."""

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        shutil.which("node") is None or not (PACKAGES / "node_modules/ai").exists(),
        reason="make clients installs it where there is npm",
    ),
]


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, Any]:
    """What the script of the client got."""
    script = Path(__file__).with_name("vercel_ai.mjs")
    done = subprocess.run(
        ["node", script, server.url, MODEL], capture_output=True, text=True, cwd=PACKAGES, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_stream_says_what_the_whole_answer_does(found: dict[str, Any]) -> None:
    text = found["text"]
    assert text["whole"]
    assert text["streamed"] == text["whole"]
    assert text["reasons"][0] == text["reasons"][1]
    assert text["tokens"][0] == text["tokens"][1] > 0


def test_objects_have_their_form(found: dict[str, Any]) -> None:
    answers = found["object"]
    assert answers["whole"]["length"] in ("short", "long")
    assert answers["streamed"] == answers["whole"] == answers["output"]
    assert answers["parts"] > 1


def test_tools_are_called_step_by_step(found: dict[str, Any]) -> None:
    tools = found["tools"]
    assert tools["whole"]
    assert tools["streamed"] == tools["whole"]
    assert tools["results"] == [f"4 {call['unit']}" for call in tools["whole"]]
    assert set(tools["reasons"]) == {"tool-calls"}


def test_an_error_has_its_status_and_message(found: dict[str, Any]) -> None:
    assert found["failure"]["status"] == 404
    assert "nobody" in found["failure"]["message"]
