"""Kept answers in SQLite, as one thread uses them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.answers.schema import prepare

_BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process that writes."""


class AnswersError(Exception):
    """Answers cannot be kept, or not be read; one line that says why."""


class ConversationTooLongError(Exception):
    """What came before an answer is more than is read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """An answer, with what it was asked."""

    id: str
    owner: str
    """Name of the API key that asked; only that one finds it."""
    created: float
    """Unix time."""
    previous: str | None
    """Id of the answer that it goes on from."""
    input: bytes
    """JSON of the items that it was asked with, those before it aside."""
    body: bytes
    """JSON of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much is kept, and for how long."""

    seconds: float = 30 * 86400.0
    """Age at which an answer is removed."""
    answers: int = 100_000
    """Most answers; the oldest go."""
    bytes: int = 128 << 20
    """Most bytes of JSON; the oldest go."""
    conversation_bytes: int = 16 << 20
    """Most bytes of what came before an answer that are read."""


class AnswerDatabase:
    """A connection, to be made and used by one thread.

    An answer that is deleted while others go on from it stays as part of their conversation, hidden, and goes with the
    last of them.

    Args:
        path: file of the database; None keeps all in memory.

    Raises:
        AnswersError: the file cannot be used.
    """

    def __init__(self, path: Path | None, limits: StoreLimits) -> None:
        self._limits = limits
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # before SQLite makes one that others can read
            self._db = sqlite3.connect(path or ":memory:", timeout=_BUSY_TIMEOUT, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise AnswersError(f"{path}: {error}") from None
        try:
            # What was committed outlives a kill; of a power failure the file comes back whole, without the last few.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}").close()
            prepare(self._db)
        except (ValueError, sqlite3.Error) as error:
            self._db.close()
            raise AnswersError(f"{path}: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def put(self, answer: KeptAnswer, now: float) -> None:
        """Keeps an answer, and removes what is too old or too much.

        Raises:
            AnswersError: it cannot be kept; nothing has changed.
        """
        with self._transaction():
            previous = None
            if answer.previous is not None:
                previous = self._number(answer.previous, answer.owner)
                if previous is None:
                    raise AnswersError("the answer that it goes on from is no longer kept")
            size = len(answer.input) + len(answer.body)
            values = (answer.id, answer.owner, answer.created, previous, answer.input, answer.body, size)
            self._db.execute(
                "INSERT INTO answer (id, owner, created, previous, input, body, size) VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            self._expire(now)
            self._evict()
            if self._number(answer.id, answer.owner) is None:
                raise AnswersError("it is too large, or too old, to be kept")

    def get(self, answer_id: str, owner: str, now: float) -> KeptAnswer | None:
        """An answer; None where its owner has none of that id, or no longer."""
        with self._reading():
            row = self._db.execute(
                "SELECT a.id, a.owner, a.created, p.id, a.input, a.body FROM answer a"
                " LEFT JOIN answer p ON p.number = a.previous"
                " WHERE a.id = ? AND a.owner = ? AND NOT a.hidden AND a.created > ?",
                (answer_id, owner, now - self._limits.seconds),
            ).fetchone()
        if row is None:
            return None
        return KeptAnswer(id=row[0], owner=row[1], created=row[2], previous=row[3], input=row[4], body=row[5])

    def conversation(self, answer_id: str, owner: str, now: float) -> list[tuple[bytes, bytes]] | None:
        """Input and body of each answer of a conversation, the given one last; None where there is no such answer.

        Raises:
            ConversationTooLongError: they are more than the limits allow.
        """
        chain = (
            "WITH RECURSIVE chain (number, previous, place, size) AS ("
            " SELECT number, previous, 0, size FROM answer"
            "  WHERE id = ? AND owner = ? AND NOT hidden AND created > ?"
            " UNION ALL SELECT a.number, a.previous, place + 1, a.size FROM chain JOIN answer a"
            "  ON a.number = chain.previous) "
        )
        asked = (answer_id, owner, now - self._limits.seconds)
        with self._reading():
            count, size = self._db.execute(f"{chain} SELECT count(*), total(size) FROM chain", asked).fetchone()  # noqa: S608
            if size > self._limits.conversation_bytes:
                raise ConversationTooLongError
            select = f"{chain} SELECT input, body FROM chain JOIN answer USING (number) ORDER BY place DESC"  # noqa: S608
            return self._db.execute(select, asked).fetchall() if count else None

    def delete(self, answer_id: str, owner: str, now: float) -> bool:
        """Removes an answer; whether there was one."""
        with self._transaction():
            self._expire(now)
            number = self._number(answer_id, owner)
            if number is not None:
                self._remove(number)
            return number is not None

    def expire(self, now: float) -> None:
        """Removes what is too old."""
        with self._transaction():
            self._expire(now)

    def totals(self) -> tuple[int, int]:
        """Number and bytes of what is kept, hidden answers included."""
        answers, size = self._db.execute("SELECT answers, bytes FROM total").fetchone()
        return answers, size

    def _number(self, answer_id: str, owner: str) -> int | None:
        row = self._db.execute(
            "SELECT number FROM answer WHERE id = ? AND owner = ? AND NOT hidden", (answer_id, owner)
        ).fetchone()
        return None if row is None else int(row[0])

    def _expire(self, now: float) -> None:
        oldest = now - self._limits.seconds
        self._remove_while(lambda created: created <= oldest)

    def _evict(self) -> None:
        def is_too_much(_created: float) -> bool:
            answers, size = self.totals()
            return answers > self._limits.answers or size > self._limits.bytes

        self._remove_while(is_too_much)

    def _remove_while(self, condition: Callable[[float], bool]) -> None:
        """Removes the oldest answer as long as a condition holds of the time of its making."""
        select = "SELECT number, created FROM answer WHERE NOT hidden ORDER BY created, number LIMIT 1"
        while (row := self._db.execute(select).fetchone()) is not None and condition(row[1]):
            self._remove(row[0])

    def _remove(self, number: int | None) -> None:
        """Hides an answer, and deletes it with those before it that nothing goes on from any more."""
        self._db.execute("UPDATE answer SET hidden = 1 WHERE number = ?", (number,))
        while number is not None:
            rows = self._db.execute(
                "DELETE FROM answer WHERE number = ? AND hidden"
                " AND NOT EXISTS (SELECT 1 FROM answer later WHERE later.previous = answer.number) RETURNING previous",
                (number,),
            ).fetchall()
            number = rows[0][0] if rows else None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise AnswersError(str(error)) from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise
        except sqlite3.Error as error:
            raise AnswersError(str(error)) from None
