"""How a hub's repository is named: ``org/repo``, with a revision, with a file's quantisation, or by its address."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from app.store.errors import StoreError

_ID = re.compile(
    r"(?P<org>[A-Za-z0-9._-]+)/(?P<repo>[A-Za-z0-9._-]+)"
    r"(?:@(?P<revision>[A-Za-z0-9._/-]+))?(?::(?P<quant>[A-Za-z0-9._-]+))?"
)
_HOSTS = ("hf.co/", "huggingface.co/")
"""Hosts that people write before an id; what is really asked is ``HF_ENDPOINT``."""


@dataclass(frozen=True, slots=True)
class HubId:
    """``org/repo``, ``org/repo@revision``, and ``:quant`` behind either: the GGUF file of that name."""

    repo: str
    revision: str | None = None
    quant: str | None = None

    @property
    def entry(self) -> str:
        """Name of the repository's entry in the store."""
        parts = [*self.repo.split("/"), *((self.revision or "").split("/") if self.revision else [])]
        # No id has two dots in a row.
        return "--".join(parts) + (f"..{self.quant}" if self.quant else "")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.quant}" if self.quant else "")


def parse_hub_id(text: str) -> HubId | None:
    """Reads a hub id, the hub's host before it or not; None when ``text`` is none.

    A hub has no ids with ``--`` or ``..`` in them.
    """
    text = without_host(text)
    match = _ID.fullmatch(text)
    if match is None or "--" in text or ".." in text or text.startswith("."):
        return None
    return HubId(f"{match['org']}/{match['repo']}", match["revision"], match["quant"])


def without_host(text: str) -> str:
    """``org/repo`` of a hub's address, and whatever stands behind it; other texts as they are."""
    bare = text.removeprefix("https://")
    host = next((host for host in _HOSTS if bare.startswith(host)), None)
    return text if host is None else bare.removeprefix(host).rstrip("/")


def at_revision(name: str, revision: str | None) -> str:
    """The name of a model with the revision that a setting asks for.

    Raises:
        StoreError: only a hub's repositories have revisions, and this one is named with another already.
    """
    if revision is None:
        return name
    hub_id = parse_hub_id(name)
    if hub_id is None or Path(name).exists():
        raise StoreError(f"revision = {revision!r}: {name!r} is no hub id, which alone has revisions")
    if hub_id.revision not in (None, revision):
        raise StoreError(f"revision = {revision!r}: {name!r} names another one")
    asked = HubId(hub_id.repo, revision, hub_id.quant)
    if parse_hub_id(str(asked)) != asked:
        raise StoreError(f"revision = {revision!r} is no branch, tag or commit")
    return str(asked)
