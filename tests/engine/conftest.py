"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[1, 2], ids=["depth1", "depth2"])
def depth(request: pytest.FixtureRequest) -> int:
    """Steps under way at once: everything must hold for both."""
    value: int = request.param
    return value
