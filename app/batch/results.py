"""Rows that answer, one for each request, each on the disk as soon as it is known."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from app.batch.errors import BatchError
from app.batch.requests import digest

_ID = "batch_req_"
_BEGINNING = f'{{"id":"{_ID}'.encode()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the server answered."""

    status_code: int
    request_id: str
    """The server's name for the request, as its log has it."""
    body: msgspec.Raw


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer."""

    code: str
    message: str


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one request: an answer, be it an error of the server's, or why there is none."""

    id: str
    custom_id: str
    response: Answer | None = None
    error: Failure | None = None

    @property
    def failed(self) -> bool:
        """Whether the request got anything but an answer with a status below 400."""
        return self.response is None or self.response.status_code >= 400


class _Known(msgspec.Struct):
    """What is read of a row that was written before; the answer itself is passed over."""

    class Status(msgspec.Struct):
        status_code: int

    custom_id: str
    response: Status | None = None


_known = msgspec.json.Decoder(_Known)


def new_id() -> str:
    """An id for a row, which is also the request's ``X-Request-Id``."""
    return _ID + secrets.token_hex(12)


class Results:
    """The file of results, open for one run at a time.

    What an earlier run has written stays: :attr:`done` has its requests. A last row that was cut off in the middle is
    taken away.

    Args:
        path: the file, made if it is not there.
        requests: digests of every ``custom_id`` that a result may have.

    Raises:
        BatchError: the file cannot be used, another run has it, or what it holds is not of these requests.
    """

    def __init__(self, path: Path, requests: Collection[bytes]) -> None:
        self.path = path
        self.done: set[bytes] = set()
        """Digests of the ``custom_id`` of every row."""
        self.num_failed = 0
        """Rows that failed."""
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as e:
            raise BatchError(f"{path}: {e.strerror or e}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover(requests)
        except BlockingIOError:
            os.close(self._file)
            raise BatchError(f"{path}: another run writes its results there") from None
        except OSError as e:
            os.close(self._file)
            raise BatchError(f"{path}: {e.strerror or e}") from None
        except BaseException:
            os.close(self._file)
            raise

    def write(self, row: ResultRow) -> None:
        """Appends a row, in one piece where the system lets it. Raises :class:`BatchError` when it cannot."""
        line = memoryview(msgspec.json.encode(row) + b"\n")
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as e:
            raise BatchError(f"{self.path}: {e.strerror or e}") from None
        self._note(digest(row.custom_id), failed=row.failed)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _recover(self, requests: Collection[bytes]) -> None:
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self._cut(end, line, number)
                    return
                end += len(line)
                try:
                    row = _known.decode(line)
                except (msgspec.DecodeError, RecursionError) as e:
                    raise BatchError(f"{self.path}: line {number} is no result of a batch: {e}") from None
                key = digest(row.custom_id)
                if key not in requests or key in self.done:
                    what = "a second result of" if key in self.done else "the result of another batch's"
                    raise BatchError(f"{self.path}: line {number} is {what} request {row.custom_id!r:.80}")
                self._note(key, failed=row.response is None or row.response.status_code >= 400)

    def _cut(self, end: int, line: bytes, number: int) -> None:
        """Takes a cut-off row away, and nothing that is no row."""
        if not line.startswith(_BEGINNING[: len(line)]):
            raise BatchError(f"{self.path}: line {number} is no result of a batch")
        os.ftruncate(self._file, end)

    def _note(self, key: bytes, *, failed: bool) -> None:
        self.done.add(key)
        self.num_failed += failed
