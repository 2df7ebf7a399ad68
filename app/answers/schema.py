"""The database of kept answers: its tables, and how an older one becomes the present one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

APPLICATION_ID = 0x7475696C
"""What marks the file as ours; the letters `tuil`."""

MIGRATIONS: Sequence[Sequence[str]] = (
    (
        # `hidden`: deleted, expired or evicted, and still part of the conversation before another answer.
        """CREATE TABLE answer (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            created REAL NOT NULL,
            previous INTEGER REFERENCES answer (number),
            input BLOB NOT NULL,
            body BLOB NOT NULL,
            size INTEGER NOT NULL,
            hidden INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX answer_age ON answer (created, number) WHERE NOT hidden",
        "CREATE INDEX answer_next ON answer (previous) WHERE previous IS NOT NULL",
        "CREATE TABLE total (answers INTEGER NOT NULL, bytes INTEGER NOT NULL)",
        "INSERT INTO total VALUES (0, 0)",
        """CREATE TRIGGER answer_added AFTER INSERT ON answer BEGIN
            UPDATE total SET answers = answers + 1, bytes = bytes + NEW.size;
        END""",
        """CREATE TRIGGER answer_removed AFTER DELETE ON answer BEGIN
            UPDATE total SET answers = answers - 1, bytes = bytes - OLD.size;
        END""",
    ),
)
"""Statements that lead from each version to the next."""


def prepare(connection: sqlite3.Connection) -> None:
    """Makes the tables, or brings them up to date: wholly or not at all.

    Raises:
        ValueError: the file is something else's, or a newer version's.
        sqlite3.Error: it is no database, or cannot be used.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        is_empty = connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None
        if application != APPLICATION_ID and not is_empty:
            raise ValueError("it is another program's database")
        if version > len(MIGRATIONS):
            raise ValueError("a newer version made it")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
