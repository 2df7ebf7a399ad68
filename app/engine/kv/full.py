"""Full attention: every block is kept and read until the request ends."""

from __future__ import annotations

from app.engine.kv.group import GroupPolicy


class FullPolicy(GroupPolicy):
    """A hit is the longest run of blocks from the first on."""
