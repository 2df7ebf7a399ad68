"""Why a batch cannot be run, or not to its end."""

from __future__ import annotations


class BatchError(Exception):
    """The batch cannot be run, or not further; the message is one line."""
