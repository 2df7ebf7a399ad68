"""API keys: their one-line form, what each may do, and how one is made.

Only digests are held: a key's text is forgotten as soon as its line has been read.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

MAX_KEYS = 1024
MIN_LENGTH = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(rf"[\x21-\x7e]{{{MIN_LENGTH},512}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class KeyFormatError(ValueError):
    """A key that cannot be read; the message is one line and never holds the key."""


class KeyScope(enum.StrEnum):
    """A group of routes that a key opens."""

    INFER = "infer"
    """Generating, tokenising, what is served, the requests made with the same key."""
    METRICS = "metrics"
    ADMIN = "admin"
    """Everything, the requests of other keys included."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, as the server knows it."""

    name: str
    """Name of the key for logs; no two keys share one."""
    scopes: frozenset[KeyScope]
    digest: bytes = field(repr=False)
    """SHA-256 of the key's bytes."""

    def allows(self, scope: KeyScope) -> bool:
        """Whether the key opens routes of ``scope``."""
        return scope in self.scopes or KeyScope.ADMIN in self.scopes


def digest(key: bytes) -> bytes:
    """SHA-256 of a key, held and compared instead of the key itself."""
    return hashlib.sha256(key).digest()


def new_key(name: str, scopes: Iterable[str]) -> tuple[str, str]:
    """Makes a key of 256 random bits; returns it and its line for the key file.

    Raises:
        KeyFormatError: a name or a scope that cannot be used.
    """
    text = f"tuili-{secrets.token_urlsafe(32)}"
    line = f"{name}:{'+'.join(scopes)}:{digest(text.encode()).hex()}"
    _parse(line, _from_digest)
    return text, line


def parse_keys(entries: Iterable[str]) -> tuple[ApiKey, ...]:
    """Keys from ``KEY`` (scope infer) or ``NAME:SCOPE+SCOPE:KEY``.

    Raises:
        KeyFormatError: an entry cannot be read, or two are alike.
    """
    keys = []
    for number, entry in enumerate(entries, 1):
        named = entry if ":" in entry else f"key-{number}:{KeyScope.INFER}:{entry}"
        keys.append(_numbered("entry", number, named, _from_key))
    return distinct(keys)


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """Keys from a file with a line ``NAME:SCOPE+SCOPE:SHA256`` each; ``#`` begins a comment line.

    Raises:
        KeyFormatError: the file or a line cannot be read, two are alike, or there is none.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise KeyFormatError(f"API key file {path}: {reason}") from None
    try:
        keys = [
            _numbered("line", number, line.strip(), _from_digest)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not keys:
            raise KeyFormatError("there is no key in it")
        return distinct(keys)
    except KeyFormatError as e:
        raise KeyFormatError(f"API key file {path}: {e}") from None


def distinct(keys: Iterable[ApiKey]) -> tuple[ApiKey, ...]:
    """The keys as they are. Raises :class:`KeyFormatError` when two share a name or are the same, or too many."""
    keys = tuple(keys)
    names: set[str] = set()
    digests: dict[bytes, str] = {}
    for key in keys:
        if key.name in names:
            raise KeyFormatError(f"two API keys are named {key.name}")
        if key.digest in digests:
            raise KeyFormatError(f"the API keys {digests[key.digest]} and {key.name} are the same key")
        names.add(key.name)
        digests[key.digest] = key.name
    if len(names) > MAX_KEYS:
        raise KeyFormatError(f"{len(names)} API keys are more than {MAX_KEYS}")
    return keys


def _numbered(what: str, number: int, text: str, read: Callable[[str], bytes]) -> ApiKey:
    try:
        return _parse(text, read)
    except KeyFormatError as e:
        raise KeyFormatError(f"{what} {number}: {e}") from None


def _parse(text: str, read: Callable[[str], bytes]) -> ApiKey:
    parts = text.split(":", 2)
    if len(parts) != 3:
        raise KeyFormatError("must be NAME:SCOPES:..., with scopes joined by +")
    name, scopes, secret = parts
    if not _NAME.fullmatch(name):
        raise KeyFormatError("a name has 1 to 64 letters, digits, dots, dashes or underscores")
    if unknown := set(scopes.split("+")) - set(KeyScope):
        raise KeyFormatError(f"{len(unknown)} unknown scope(s); there are {', '.join(KeyScope)}")
    return ApiKey(name, frozenset(map(KeyScope, scopes.split("+"))), read(secret))


def _from_key(text: str) -> bytes:
    if not _KEY.fullmatch(text):
        raise KeyFormatError(f"a key has {MIN_LENGTH} to 512 printable ASCII characters and no spaces")
    return digest(text.encode())


def _from_digest(text: str) -> bytes:
    if not _DIGEST.fullmatch(text):
        raise KeyFormatError("the last part must be the key's SHA-256, 64 lower-case hex digits")
    return bytes.fromhex(text)
