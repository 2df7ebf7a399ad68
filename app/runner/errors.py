"""Errors of the tensor side."""

from __future__ import annotations


class RunnerError(RuntimeError):
    """The runner cannot start, or cannot run a step; one line a person can act on."""
