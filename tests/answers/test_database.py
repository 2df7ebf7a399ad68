"""Kept answers: who finds them, for how long, and what goes when there is too much."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.answers.database import AnswerDatabase, AnswersError, ConversationTooLongError, KeptAnswer, StoreLimits
from app.answers.schema import MIGRATIONS

SIZE = 100
"""Bytes of each answer here."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "answers.db"


def database(path: Path | None = None, **limits: Any) -> AnswerDatabase:
    return AnswerDatabase(path, StoreLimits(**limits))


@pytest.fixture
def memory() -> Iterator[AnswerDatabase]:
    made = database(seconds=1000)
    yield made
    made.close()


def answer(name: str, previous: str | None = None, *, owner: str = "me", created: float = 0.0) -> KeptAnswer:
    body = name.encode().ljust(SIZE - 2)
    return KeptAnswer(id=name, owner=owner, created=created, previous=previous, input=b"[]", body=body)


def names(conversation: list[tuple[bytes, bytes]] | None) -> list[str]:
    return [body.decode().strip() for _, body in conversation or ()]


def test_an_answer_is_found_by_its_owner_alone(memory: AnswerDatabase) -> None:
    kept = answer("a", owner="me")
    memory.put(kept, 0)
    assert memory.get("a", "me", 0) == kept
    assert memory.get("a", "you", 0) is None
    assert memory.conversation("a", "you", 0) is None
    assert not memory.delete("a", "you", 0)
    with pytest.raises(AnswersError):
        memory.put(answer("b", "a", owner="you"), 0)
    assert memory.delete("a", "me", 0)
    assert memory.get("a", "me", 0) is None
    assert memory.totals() == (0, 0)


def test_a_conversation_outlives_its_deleted_turns(memory: AnswerDatabase) -> None:
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("other", "a")):
        memory.put(answer(name, previous), 0)
    assert memory.delete("b", "me", 0)
    assert memory.delete("a", "me", 0)
    assert names(memory.conversation("c", "me", 0)) == ["a", "b", "c"]
    assert memory.get("a", "me", 0) is None
    assert memory.conversation("b", "me", 0) is None
    assert not memory.delete("a", "me", 0)
    with pytest.raises(AnswersError):
        memory.put(answer("d", "b"), 0)
    assert memory.totals() == (4, 4 * SIZE)
    assert memory.delete("c", "me", 0)
    assert memory.totals() == (2, 2 * SIZE)  # `other` and what it goes on from
    assert memory.delete("other", "me", 0)
    assert memory.totals() == (0, 0)


def test_old_answers_go(memory: AnswerDatabase) -> None:
    memory.put(answer("old", created=10), 10)
    memory.put(answer("next", "old", created=500), 500)
    assert memory.get("old", "me", 1009) is not None
    assert memory.get("old", "me", 1010) is None
    memory.expire(1010)
    assert names(memory.conversation("next", "me", 1010)) == ["old", "next"]
    memory.expire(1500)
    assert memory.totals() == (0, 0)


@pytest.mark.parametrize("limit", [{"answers": 3}, {"bytes": 3 * SIZE}])
def test_the_oldest_go_when_there_are_too_many(limit: dict[str, Any]) -> None:
    kept = database(**limit)
    for moment, name in enumerate("abcde"):
        kept.put(answer(name, created=moment), moment)
    assert [name for name in "abcde" if kept.get(name, "me", 5)] == ["c", "d", "e"]
    assert kept.totals() == (3, 3 * SIZE)
    kept.close()


def test_what_is_too_large_to_be_kept_is_refused_and_moves_nobody() -> None:
    kept = database(bytes=3 * SIZE)
    kept.put(answer("a"), 0)
    kept.put(answer("b", "a"), 0)
    kept.put(answer("c", "b"), 0)
    # With what it goes on from it is more than all.
    with pytest.raises(AnswersError, match="too large"):
        kept.put(answer("d", "c"), 0)
    assert names(kept.conversation("c", "me", 0)) == ["a", "b", "c"]
    assert kept.totals() == (3, 3 * SIZE)
    kept.close()


def test_long_conversations_are_not_read() -> None:
    kept = database(conversation_bytes=2 * SIZE)
    for name, previous in (("a", None), ("b", "a"), ("c", "b")):
        kept.put(answer(name, previous), 0)
    assert names(kept.conversation("b", "me", 0)) == ["a", "b"]
    with pytest.raises(ConversationTooLongError):
        kept.conversation("c", "me", 0)
    kept.close()


def test_a_file_is_found_again_and_is_nobody_elses(path: Path) -> None:
    first = database(path)
    first.put(answer("a"), 0)
    first.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = database(path)
    assert again.get("a", "me", 0) == answer("a")
    assert again.totals() == (1, SIZE)
    again.close()


def test_two_servers_may_share_a_file(path: Path) -> None:
    first, second = database(path), database(path)
    first.put(answer("a"), 0)
    second.put(answer("b", "a"), 0)
    assert names(first.conversation("b", "me", 0)) == ["a", "b"]
    assert first.totals() == second.totals() == (2, 2 * SIZE)
    first.close()
    second.close()


def test_what_is_no_database_of_ours_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"some text of the user's, which is long enough to be read as the header of a database " * 3)
    with pytest.raises(AnswersError, match="not a database"):
        database(path)
    assert path.read_bytes().startswith(b"some text")
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(AnswersError, match="another program"):
        database(path)
    with pytest.raises(AnswersError):
        database(path.parent)


def test_a_newer_versions_file_is_refused(path: Path) -> None:
    database(path).close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    with pytest.raises(AnswersError, match="newer version"):
        database(path)
