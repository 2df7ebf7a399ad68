"""Log lines, read back from the stderr of a process of its own: logging is set up once for a whole process."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

PROGRAM = """
import logging, sys
import structlog
from app.telemetry.logs import bind_request_id, configure_logging

early = structlog.get_logger("tuili.early")
configure_logging(sys.argv[1], sys.argv[2])
early.info("made before the set-up", tokens=3)
bind_request_id("r-1")
structlog.get_logger("tuili.test").debug("detail")
logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
logging.getLogger("uvicorn.access").info("GET /")
try:
    prompt = "a" + "secret"
    1 / 0
except ZeroDivisionError:
    logging.getLogger("tuili.other").exception("it broke")
"""


def run(level: str, log_format: str) -> list[str]:
    """The program's lines on stderr; stdout stays empty."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, log_format], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def parsed(level: str, log_format: str = "json") -> list[dict[str, Any]]:
    """The lines as JSON."""
    return [json.loads(line) for line in run(level, log_format)]


def test_lines_are_json_with_level_time_and_request_id() -> None:
    first, uvicorn, broken = parsed("info")
    assert first["event"] == "made before the set-up"
    assert (first["level"], first["tokens"], first["logger"]) == ("info", 3, "tuili.early")
    assert "request_id" not in first
    assert datetime.fromisoformat(first["timestamp"]).tzinfo is not None
    assert (uvicorn["event"], uvicorn["level"], uvicorn["request_id"]) == ("from uvicorn", "warning", "r-1")
    assert "ZeroDivisionError" in broken["exception"]


def test_the_level_is_obeyed() -> None:
    assert [line["event"] for line in parsed("debug")] == [
        "made before the set-up",
        "detail",
        "from uvicorn",
        "it broke",
    ]
    assert [line["event"] for line in parsed("error")] == ["it broke"]


def test_auto_is_json_unless_on_a_terminal() -> None:
    assert len(parsed("info", "auto")) == 3


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_show_no_values(log_format: str) -> None:
    text = "\n".join(run("info", log_format))
    assert "ZeroDivisionError" in text
    assert "asecret" not in text


def test_lines_for_people_are_not_json() -> None:
    lines = run("info", "console")
    assert "made before the set-up" in lines[0]
    assert not lines[0].startswith("{")
