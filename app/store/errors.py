"""Errors of the model store; each message is one line that a person can act on."""

from __future__ import annotations


class StoreError(Exception):
    """A model that cannot be fetched, found or read."""


class ModelNotFound(StoreError):  # noqa: N818 - says what is the matter
    """A model that is not there yet; the message holds the command that fetches it, if there is one."""
