"""Rows that ask: a JSONL file of ``custom_id``, ``method``, ``url`` and ``body``, gone through without loading it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from app.batch.errors import BatchError

MAX_LINE = 256 << 20
"""Most bytes of a row."""
_BOM = b"\xef\xbb\xbf"

CustomId = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class RequestRow(msgspec.Struct, frozen=True):
    """One request."""

    custom_id: CustomId
    method: str
    url: str
    """Path of the server's route, e.g. ``/v1/chat/completions``."""
    body: msgspec.Raw


class BadRow(msgspec.Struct, frozen=True):
    """A row that names itself and is no request otherwise."""

    custom_id: CustomId
    problem: str


class _Named(msgspec.Struct):
    custom_id: CustomId


_rows, _named = msgspec.json.Decoder(RequestRow), msgspec.json.Decoder(_Named)


def digest(custom_id: str) -> bytes:
    """What stands for a ``custom_id`` in memory: of a large file the ids alone would fill it."""
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def scan(path: Path) -> set[bytes]:
    """Checks that every row of a file can be told from the others.

    Returns:
        The digests of all ``custom_id``.

    Raises:
        BatchError: the file cannot be read, has no rows, a row is no JSON object, or two have the same ``custom_id``.
    """
    seen: set[bytes] = set()
    for number, line in _lines(path):
        try:
            custom_id = _named.decode(line).custom_id
        except (msgspec.DecodeError, RecursionError) as e:
            raise BatchError(f"{path}: line {number} is no row of a batch: {e}") from None
        key = digest(custom_id)
        if key in seen:
            raise BatchError(f"{path}: line {number} has the custom_id of a row before it: {custom_id!r:.80}")
        seen.add(key)
    if not seen:
        raise BatchError(f"{path} has no rows")
    return seen


def read(path: Path) -> Iterator[RequestRow | BadRow]:
    """The rows of a file that :func:`scan` has checked, one by one."""
    for number, line in _lines(path):
        try:
            yield _rows.decode(line)
        except (msgspec.DecodeError, RecursionError) as e:
            try:
                yield BadRow(_named.decode(line).custom_id, str(e))
            except msgspec.DecodeError:
                raise BatchError(f"{path}: line {number} has changed while the batch ran") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise BatchError(f"{path}: line {number} is longer than {MAX_LINE >> 20} MiB")
                line = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
                if line:
                    yield number, line
    except OSError as e:
        raise BatchError(f"{path}: {e.strerror or e}") from None
