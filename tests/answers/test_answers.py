"""Kept answers as the event loop sees them."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.answers.answers import Answers
from app.answers.database import AnswersError, KeptAnswer, StoreLimits

_WRITES_FOR_EVER = """
import sys, time
from pathlib import Path
from app.answers.database import AnswerDatabase, KeptAnswer, StoreLimits
kept = AnswerDatabase(Path(sys.argv[1]), StoreLimits(answers=50))
for number in range(10**9):
    body = b"x" * 5000
    kept.put(KeptAnswer(id=f"r{number}", owner="", created=time.time(), previous=None, input=b"[]", body=body), 0)
    print(number, flush=True)
"""


def answer(name: str, previous: str | None = None) -> KeptAnswer:
    return KeptAnswer(id=name, owner="me", created=2e9, previous=previous, input=b"[1]", body=json.dumps(name).encode())


async def test_answers_are_kept_in_memory_and_in_files(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.db")
    for place in ("memory", file):
        answers = Answers(place)
        await answers.put(answer("a"))
        await answers.put(answer("b", "a"))
        assert await answers.get("b", "me") == answer("b", "a")
        assert await answers.conversation("b", "me") == [(b"[1]", b'"a"'), (b"[1]", b'"b"')]
        assert await answers.delete("b", "me")
        answers.close()
    again = Answers(file)
    assert await again.get("a", "me") is not None
    assert await again.get("b", "me") is None
    again.close()


async def test_where_none_are_kept_none_are_found() -> None:
    answers = Answers("none")
    assert not answers.are_kept
    with pytest.raises(AnswersError):
        await answers.put(answer("a"))
    assert await answers.get("a", "me") is None
    assert await answers.conversation("a", "me") is None
    assert not await answers.delete("a", "me")


async def test_answers_under_way_are_found_until_they_end() -> None:
    answers = Answers()
    text = ""
    answers.begin("a", "me", lambda: text.encode())
    text = "so far"
    assert answers.under_way("a", "me") == b"so far"
    assert answers.under_way("a", "you") is None
    answers.end("a", "me")
    answers.end("a", "me")
    assert answers.under_way("a", "me") is None


async def test_what_was_begun_is_kept_though_its_client_leaves() -> None:
    answers = Answers("memory", StoreLimits())
    writing = asyncio.create_task(answers.put(answer("a")))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert await answers.get("a", "me") is not None
    answers.close()


def test_a_place_that_cannot_be_used_is_told() -> None:
    with pytest.raises(AnswersError, match="/dev/null"):
        Answers("/dev/null/answers.db")


def _last_written_when_killed(file: Path) -> int:
    """Number of the last answer that a process had said to be kept when it was killed."""
    writer = subprocess.Popen([sys.executable, "-c", _WRITES_FOR_EVER, file], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout as lines:
        for _ in range(200):
            last = int(next(lines))
        writer.send_signal(signal.SIGKILL)
        rest = [line for line in lines if line.endswith("\n")]
    writer.wait()
    return max([last, *map(int, rest)])


async def test_a_killed_writer_leaves_a_file_that_opens(tmp_path: Path) -> None:
    file = tmp_path / "answers.db"
    last = await asyncio.to_thread(_last_written_when_killed, file)
    answers = Answers(str(file))
    assert await answers.get(f"r{last}", "") is not None
    assert await answers.get(f"r{last - 50}", "") is None
    await answers.put(answer("a"))
    assert await answers.get("a", "me") is not None
    answers.close()
